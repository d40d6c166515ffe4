"""Programs survive the disk: the same numbers, signature and history, weights still lazy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.program.program import Program


class Tied(nn.Module):
    """An embedding that is also the output layer, a feed-forward block between them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.table(ids)
        x = x + self.down(torch.relu(self.up(x)))
        return {"logits": x @ self.table.weight.T, "hidden": x}


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    captured = moec.capture(Tied(), {"ids": torch.zeros(3, 11, dtype=torch.long)}, {"ids": ("batch", "sequence")})
    return moec.Pipeline.parse("upcycle(experts=4, top_k=2), fuse-moe").run(captured)[0]


def test_round_trip(program: Program, tmp_path: Path) -> None:
    moec.save_program(program, tmp_path / "saved")
    loaded = moec.load_program(tmp_path / "saved")
    assert (loaded.inputs, loaded.outputs, loaded.history, loaded.source) == (
        program.inputs,
        program.outputs,
        program.history,
        program.source,
    )
    ids = torch.randint(0, 20, (2, 7))
    want, got = program.run(ids=ids), loaded.run(ids=ids)
    assert all(torch.equal(want[name], got[name]) for name in ("logits", "hidden"))
    assert len(loaded.nodes(torch.ops.moec.moe.default)) == 1


def test_a_changed_weight_is_seen(program: Program, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    moec.save_program(program, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(n for n in weights if n.endswith("w_out"))
    save_file({**weights, name: weights[name] * 1.01}, tmp_path / "model.safetensors")
    ids = torch.randint(0, 20, (2, 7))
    assert not torch.equal(program.run(ids=ids)["logits"], moec.load_program(tmp_path).run(ids=ids)["logits"])


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="not a program") as caught:
        moec.load_program(tmp_path)
    assert caught.value.code == "M204"


class Switches(nn.Module):
    """Another result for short texts, so that the sizes that all programs are traced at do not do."""

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return (x[ids] if ids.shape[0] >= 40 else -x[ids]) * 2


def test_what_a_program_assumes_survives(tmp_path: Path) -> None:
    samples = {"ids": torch.zeros(50, dtype=torch.long), "x": torch.randn(9, 4)}
    saved = moec.capture(Switches(), samples, {"ids": ("tokens",), "x": (None, None)})
    saved.edges = ({"tokens": 41},)
    moec.save_program(saved, tmp_path)
    loaded = moec.load_program(tmp_path)
    assert [str(c) for c in loaded.conditions] == ["tokens >= 40"] and loaded.edges == saved.edges
    assert [str(v) for v in loaded.values] == ["-9 <= ids <= 8"]
    engine = EagerEngine(loaded)
    given = {"ids": torch.randint(0, 9, (60,)), "x": torch.randn(9, 4)}
    assert torch.equal(engine(**given)["output"], Switches()(**given))
    with pytest.raises(MoecError) as caught:
        engine(**{**given, "ids": given["ids"][:39]})
    assert caught.value.code == "M213"


@pytest.mark.parametrize("assumed", [None, {"sizes": ["exit()"], "values": []}, {"sizes": []}])
def test_assumptions_that_are_none_are_refused(program: Program, tmp_path: Path, assumed: object) -> None:
    moec.save_program(program, tmp_path)
    facts = json.loads((tmp_path / "program.json").read_text())
    (tmp_path / "program.json").write_text(json.dumps({**facts, "assumptions": assumed}))
    with pytest.raises(MoecError) as caught:
        moec.load_program(tmp_path)
    assert caught.value.code == "M204"
