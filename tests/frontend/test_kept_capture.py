"""A capture is made once: what is kept is the same program with the weights of today, or is not used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moec.files import kept
from moec.frontend import kept_capture, module_source
from moec.frontend.kept_capture import FACTS
from moec.frontend.module_source import FileSource, from_file
from moec.weights.remembered import keep, recall
from tests.kept_captures import count_captures

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.scale = nn.Embedding(20, 6), nn.Linear(6, 6), 2.0
        self.register_buffer("shift", torch.randn(6))

    def forward(self, ids):
        x = self.embed(ids)
        x = torch.relu(self.up(x)) * self.scale + self.shift + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        return {"logits": x @ self.embed.weight.T, "hidden": x, "note": None}

def net():
    return Net()

def samples():
    return {"ids": torch.zeros(3, 11, dtype=torch.long)}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captures that are really made."""
    return count_captures(kept_capture, monkeypatch)


def opened(folder: Path, code: str = CODE) -> FileSource:
    file = folder / "net.py"
    file.write_text(code)
    return from_file(f"{file}:net:samples")


def difference(source: FileSource, values: dict[str, Tensor]) -> float:
    want = source.reference()(**source.sample({"batch": 2, "sequence": 5}, seed=1))
    return max(float((want[name] - values[name]).detach().abs().max()) for name in ("logits", "hidden"))


def test_a_second_capture_is_the_first_with_the_weights_of_today(tmp_path: Path, made: list[str]) -> None:
    first, second = opened(tmp_path), opened(tmp_path)  # their weights are drawn anew
    one, two = first.capture(), second.capture()
    assert len(made) == 1 and not first.recalled_from and second.recalled_from
    assert one.text() == two.text() and (one.conditions, one.values, one.edges) == (
        two.conditions,
        two.values,
        two.edges,
    )
    assert one.original.form == two.original.form and one.original.fixed == two.original.fixed != frozenset()
    given = second.sample({"batch": 2, "sequence": 5}, seed=1)
    assert difference(second, two.run(**given)) < 1e-5 < 0.1 < difference(second, one.run(**given))
    assert two.weights["embed.weight"].load().data_ptr() == second._module.embed.weight.data_ptr(), "nothing is copied"


@pytest.mark.parametrize(
    "change", [("2.0", "3.0"), ("relu", "sigmoid"), ("nn.Linear(6, 6)", "nn.Linear(6, 6, bias=False)")]
)
def test_another_model_is_captured_anew(tmp_path: Path, made: list[str], change: tuple[str, str]) -> None:
    opened(tmp_path).capture()
    other = opened(tmp_path, CODE.replace(*change))
    found = other.capture()
    assert len(made) == 2 and not other.recalled_from
    assert difference(other, found.run(**other.sample({"batch": 2, "sequence": 5}, seed=1))) < 1e-5


def test_what_a_number_is_read_from_elsewhere_is_seen(tmp_path: Path, made: list[str]) -> None:
    code = CODE.replace("2.0\n", "float(open(__file__ + '.txt').read())\n")
    for number in ("2.0", "3.0"):
        (tmp_path / "net.py.txt").write_text(number)
        source = opened(tmp_path, code)
        found = source.capture().run(**source.sample({"batch": 2, "sequence": 5}, seed=1))
        assert difference(source, found) < 1e-5
    assert len(made) == 2


def test_code_from_elsewhere_is_seen(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    code = CODE.replace("from torch import nn", "from torch import nn\nfrom elsewhere_act import act")
    for body in ("x + 0.5", "x + 0.75"):
        (tmp_path / "lib" / "elsewhere_act.py").write_text(f"def act(x):\n    return {body}\n")
        source = opened(tmp_path, code.replace("torch.relu", "act"))
        found = source.capture().run(**source.sample({"batch": 2, "sequence": 5}, seed=1))
        assert difference(source, found) < 1e-5
        del sys.modules["elsewhere_act"]
    assert len(made) == 2


def test_another_dtype_is_another_capture(tmp_path: Path, made: list[str]) -> None:
    source = opened(tmp_path)
    assert source.capture().text() != source.capture(torch.float64).text() and len(made) == 2
    source.capture(torch.float64)
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["bytes", "content", "operator"])
def test_a_broken_one_is_removed_and_made_anew(tmp_path: Path, place: Path, made: list[str], damage: str) -> None:
    source = opened(tmp_path)
    text = source.capture().text()
    (path,) = place.iterdir()
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        found = recall(path.stem)
        assert found is not None
        facts = json.loads(found.pop(FACTS).numpy().tobytes())
        if damage == "operator":
            next(n for n in facts["graph"]["nodes"] if n[0] == "call_function")[2] = "os.system"
        else:
            del facts["graph"]["examples"]
        new = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        assert keep(path.stem, {FACTS: new, **found})
    assert source.capture().text() == text and len(made) == 2 and not source.recalled_from
    assert source.capture().text() == text and len(made) == 2 and source.recalled_from


def test_within_a_proof_nothing_is_taken(tmp_path: Path, made: list[str], place: Path) -> None:
    source = opened(tmp_path)
    source.capture()
    before = [path.stat().st_mtime_ns for path in place.iterdir()]
    with kept.unused():
        source.capture()
    assert len(made) == 2 and [path.stat().st_mtime_ns for path in place.iterdir()] == before


def test_a_module_that_hides_something_is_captured_each_time(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_source, "capture", kept_capture.capture)
    source = opened(tmp_path, CODE.replace("2.0\n", "2.0\n        self.thing = object()\n"))
    source.capture()
    source.capture()
    assert len(made) == 2 and not kept.entries()
