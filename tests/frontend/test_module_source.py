"""Models that are Python objects: modules, `file.py:callable`, `.pt2`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.domain import Domain
from moec.frontend.module_source import ExportedSource, ModuleSource, from_file, guess_dynamic, parse_inputs

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 4)

    def forward(self, ids):
        return {"scores": self.head(self.table(ids))}

def samples():
    return {"ids": torch.tensor([[3, 29, 5], [1, 0, 2]])}

def number():
    return 3

def fails():
    raise ValueError("no weights")

BUILT = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "net.py"


@pytest.mark.parametrize("form", ["--input", "second callable"])
def test_a_callable_in_a_file(file: Path, form: str) -> None:
    source = (
        from_file(f"{file}:Net", ["ids=batch,sequence:int64<30"])
        if form == "--input"
        else from_file(f"{file}:Net:samples")
    )
    assert [(i.name, i.dtype, i.shape) for i in source.inputs] == [("ids", torch.int64, ("batch", "sequence"))]
    assert (
        source.domains["ids"] == Domain("number", 30)
        and list(source.hashes) == ["net.py"]
        and len(source.hashes["net.py"]) == 64
    )
    sample = source.sample({"batch": 2, "sequence": 7}, seed=5)
    assert sample["ids"].shape == (2, 7) and 2 < int(sample["ids"].max()) < 30
    found, want = source.capture().run(**sample), source.reference()(**sample)
    assert list(found) == list(want) == ["scores"] and torch.allclose(found["scores"], want["scores"], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("{file}:missing", "M204", "missing"),
        ("{file}:BUILT", "M204", "BUILT"),
        ("{file}:number", "M204", "int"),
        ("{file}:fails", "M204", "no weights"),
        ("{file}:Net", "M201", "--input"),
        ("{file}.nowhere.py:Net", "M204", "no such"),
    ],
)
def test_what_cannot_be_opened_is_refused(file: Path, text: str, code: str, named: str) -> None:
    with pytest.raises(MoecError) as caught:
        from_file(text.format(file=file))
    assert caught.value.code == code and named in str(caught.value)


def test_a_file_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\n1/0\n")
    with pytest.raises(MoecError, match="ZeroDivisionError"):
        from_file(f"{tmp_path / 'broken.py'}:Net:samples")


def test_inputs_are_parsed() -> None:
    samples, dynamic, domains = parse_inputs(
        ["ids=batch,sequence:int64<1000", "attention_mask=batch,sequence:int64", "pixels=batch,3,height:float32"]
    )
    assert dynamic == {
        "ids": ("batch", "sequence"),
        "attention_mask": ("batch", "sequence"),
        "pixels": ("batch", None, "height"),
    }
    assert (
        domains["ids"].high,
        domains["attention_mask"].kind,
        samples["pixels"].dtype,
        samples["pixels"].shape[1],
    ) == (1000, "mask", torch.float32, 3)
    assert samples["ids"].shape == samples["attention_mask"].shape
    assert (
        len({*samples["ids"].shape, samples["pixels"].shape[2]}) == 3
    )  # unlike sizes, lest torch.export take two dimensions for one


@pytest.mark.parametrize(
    "spec", ["ids", "ids=2,3", "ids=2:int63", "=2:int64", "ids=2;3:int64", "ids=2:int64<many", "x=batch:nn"]
)
def test_inputs_that_are_none_are_refused(spec: str) -> None:
    with pytest.raises(MoecError) as caught:
        parse_inputs([spec])
    assert caught.value.code == "M201" and spec in caught.value.what


def test_dynamic_dimensions_are_guessed() -> None:
    inputs = {"ids": torch.zeros(3, 5, dtype=torch.int64), "pixels": torch.zeros(3, 3, 8, 8), "step": torch.tensor(1.0)}
    assert guess_dynamic(inputs) == {"ids": ("batch", "sequence"), "pixels": ("batch", None, None, None), "step": ()}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_a_module_in_memory_is_not_modified() -> None:
    model = Scale()
    source = ModuleSource(model, {"x": torch.randn(3, 4)})
    assert {w.dtype for w in source.capture(torch.float16).weights.values()} == {torch.float16}
    assert model.linear.weight.dtype == torch.float32 and source.size_bytes == 20 * 4
    assert next(iter(source.reference()(x=torch.randn(2, 4)).values())).dtype == torch.float32


def test_a_pt2_file(tmp_path: Path) -> None:
    model, x = Scale().eval(), torch.randn(3, 4)
    torch.export.save(
        torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}), tmp_path / "model.pt2"
    )
    source = ExportedSource(tmp_path / "model.pt2")
    dim = source.inputs[0].shape[0]
    assert isinstance(dim, str) and source.inputs[0].shape[1] == 4 and source.hashes.keys() == {"model.pt2"}
    sample = source.sample({dim: 5})
    assert torch.allclose(source.reference()(**sample)["output"], model(sample["x"]), atol=1e-6)
    assert torch.allclose(source.capture().run(**sample)["output"], model(sample["x"]), atol=1e-6)


def test_token_ids_of_a_pt2_file_cover_the_vocabulary(file: Path, tmp_path: Path) -> None:
    model = from_file(f"{file}:Net:samples").reference()
    torch.export.save(torch.export.export(model.module, (torch.tensor([[3, 29, 5]]),)), tmp_path / "model.pt2")  # type: ignore[attr-defined]
    source = ExportedSource(tmp_path / "model.pt2")
    assert source.domains == {"ids": Domain("token", 30)}
    assert max(int(source.sample({}, seed)["ids"].max()) for seed in range(5)) > 20


def test_a_pt2_file_cannot_be_brought_to_another_precision(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Scale(), (torch.randn(3, 4),)), tmp_path / "model.pt2")
    with pytest.raises(MoecError) as caught:
        ExportedSource(tmp_path / "model.pt2").capture(torch.float16)
    assert caught.value.code == "M208" and "float32" in caught.value.what


def test_what_is_no_pt2_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"not a zip file")
    with pytest.raises(MoecError) as caught:
        ExportedSource(tmp_path / "model.pt2")
    assert caught.value.code == "M204"


class Filters(nn.Module):
    """Needs 15 frames: three convolutions of 3, each over every second."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Sequential(*(nn.Conv1d(4, 4, 3, 2) for _ in range(3)))

    def forward(self, feats: Tensor) -> Tensor:
        return self.filters(feats.transpose(1, 2))


@pytest.mark.parametrize("shape", [(3, 7, 4), (1, 20, 4), (1, 1, 4), (2, 40, 4)])
def test_samples_that_are_too_small_are_enlarged_and_the_least_size_is_found(shape: tuple[int, ...]) -> None:
    model = Filters().eval()
    source = ModuleSource(model, {"feats": torch.randn(shape)}, {"feats": ("batch", "frames", None)})
    program = source.capture()
    assert [str(c) for c in program.conditions] == ["frames >= 15"]
    engine = EagerEngine(program)
    for batch, frames in ((1, 15), (2, 16), (5, 99)):
        x = torch.randn(batch, frames, 4)
        assert torch.allclose(engine(feats=x)["output"], model(x), atol=1e-6)
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 14, 4))
    with pytest.raises(MoecError) as caught:
        engine(feats=torch.randn(1, 14, 4))
    assert caught.value.code == "M213"


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(5, 5) if x.shape[0] < 50 else x.new_zeros(3).reshape(-1, 2)


def test_the_error_of_a_model_that_larger_samples_do_not_help_is_that_of_its_own() -> None:
    with pytest.raises(MoecError, match="4") as caught:
        ModuleSource(Square(), {"x": torch.randn(7, 4)}, {"x": ("rows", "columns")}).capture()
    assert caught.value.code == "M207" and "56" not in caught.value.what


class Settles(nn.Module):
    """Keeps for good what its first text decides."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = ""

    def forward(self, ids: Tensor) -> Tensor:
        self.mode = self.mode or ("short" if ids.shape[1] < 20 else "long")
        return ids * 2.0 if self.mode == "short" else ids.cumsum(1) * 1.0


def test_a_model_that_keeps_what_its_first_text_decides_is_captured_and_compared_as_it_is_at_first() -> None:
    model = Settles()
    source = ModuleSource(model, {"ids": torch.ones(3, 11, dtype=torch.int64)}, {"ids": ("batch", "length")})
    program, reference = source.capture(), source.reference()
    assert [str(c) for c in program.conditions] == ["length <= 19"] and model.mode == ""
    for length in (5, 30, 5, 19, 20):
        ids = torch.randint(1, 9, (2, length))
        want = Settles()(ids)
        assert torch.equal(reference(ids=ids)["output"], want)
        if length < 20:
            assert torch.equal(EagerEngine(program)(ids=ids)["output"], want)


class Padded(nn.Module):
    """Blocks of 16: torch.export takes it only at a multiple of these."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        blocks = nn.functional.pad(h, (0, 0, 0, -h.shape[1] % 16)).view(h.shape[0], -1, 16, 8)
        return h + blocks.cumsum(2).reshape(h.shape[0], -1, 8)[:, : h.shape[1]]


def test_a_capture_that_refuses_the_users_own_sample_is_none() -> None:
    ids = torch.zeros(3, 11, dtype=torch.long)
    with pytest.raises(MoecError) as caught:
        ModuleSource(Padded().eval(), {"ids": ids}, {"ids": ("batch", "sequence")}).capture()
    assert caught.value.code == "M207"
