"""Networks in a graph that are cut: in order, each on what the cut ones before it bring."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.experts import carving
from moec.experts.carved_place import CarvedPlace, carve_in_order
from moec.experts.carving import Carving
from moec.experts.dense_network import dense_of
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import text_inputs
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.ffn import find_ffns
from tests import learned, zoo

HOW = Carving(4, 0, 2, "rows", "ridge", True, True, 0)


def text(tokens: int = 256) -> list[dict[str, Tensor]]:
    program = zoo.captured("llama", cache=False)
    ids = torch.randint(0, zoo.VOCAB, (tokens // 32, 32), generator=torch.Generator().manual_seed(0))
    return [text_inputs(program.inputs, ids)]


def test_later_networks_see_what_the_cut_ones_before_them_say() -> None:
    seen = []
    for cut in (2, 1):  # both, or the last alone
        program = zoo.captured("llama", cache=False).clone()
        places = [CarvedPlace(program, ffn, HOW, "test") for ffn in find_ffns(program)[0][-cut:]]
        for place in places:
            place.rewrite("test", {})
        carve_in_order(program, places, text())
        program.check()
        seen.append(program.weights[places[-1].names["router.weight"]].load())
    assert bool(seen[0].any()) and not torch.equal(seen[0], seen[1])


def test_a_short_text_is_refused_and_errors_are_told_of_a_text_only() -> None:
    program = zoo.captured("llama", cache=False).clone()
    place = CarvedPlace(program, find_ffns(program)[0][0], HOW, "test")
    place.rewrite("test", {})
    with pytest.raises(MoecError, match="too few for 4 experts"):
        carve_in_order(program, [place], text(64))
    carve_in_order(program, [place], [])
    assert set(place.facts(measured=False)) == {"module", "active", "shared"}
    assert {"carved", "static", "oracle"} < set(place.facts(measured=True))


@pytest.mark.parametrize("fails", [False, True])
def test_errors_that_are_told_are_those_of_the_program_that_is_written(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fails:
        monkeypatch.setattr(carving, "refitted", lambda before, *_: (before, None))
    untouched = learned.captured()
    program, batches = untouched.clone(), [text_inputs(untouched.inputs, learned.texts()[0])]
    ffns = find_ffns(program)[0]
    places = [CarvedPlace(program, ffn, replace(HOW, experts=8), "test") for ffn in ffns]
    for place in places:
        place.rewrite("test", {})
    carve_in_order(program, places, batches, untouched.clone())
    for place, ffn in zip(places, ffns, strict=True):
        facts = json.loads(json.dumps(place.facts(measured=True)))
        assert facts["compared"] == "stream" and isinstance(facts["step"], str if fails else float)
        total = next(iter(place.made.users)).name
        here, there = (value_at(each, total, batches, (0, 1)) for each in (program, untouched))
        x = value_at(program, place.first.name, batches, (0,))
        judged = slice(len(x) - len(x) // 8, None)
        unit = dense_of(ffn)(x[judged]).square().sum()
        lost = float((here - there)[judged].square().sum() / unit)
        assert facts["carved"] == pytest.approx(lost, rel=1e-3) and lost > 1e-3


def value_at(program: Program, name: str, batches: list[dict[str, Tensor]], places: tuple[int, ...]) -> Tensor:
    """The sum of an operator's arguments at these places, of the only batch, `[T, H]`."""
    found = list[Tensor]()

    def visit(calls: OperatorCalls) -> None:
        if calls.node.name == name:
            found.append(torch.stack([calls.values(place)[0] for place in places]).sum(0))

    run_in_lockstep(program, batches, visit)
    return found[0].flatten(0, -2)


class Chain(nn.Module):
    """A language model of networks that read each other's outputs as they are, and of two that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(zoo.VOCAB, 8)
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*s) for _ in range(4)) for s in ((8, 16), (16, 8)))

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids)
        a, b, c, d = (lambda y, k=k: self.downs[k](torch.relu(self.ups[k](y))) for k in range(4))
        x = b(a(x))
        return {"logits": (x + (c(x) + d(x))) @ self.table.weight.T}


def test_networks_in_a_chain_and_beside_each_other_are_all_cut() -> None:
    model, ids = Chain().eval(), torch.randint(0, zoo.VOCAB, (8, 32))
    dense = moec.capture(model, {"input_ids": ids[:3, :7]}, {"input_ids": ("batch", "sequence")})
    calibration = Calibration(CalibrationText("text", 0, 32), "", ids.flatten())
    for how, count in (("active=4", 4), ("active=0.75", 3)):
        done, _ = Pipeline.parse(f"carve(experts=4, {how})").run(dense, Context(calibration=calibration))
        assert len(moe_nodes(done)) >= count - (how != "active=4") * 2
        if how == "active=4":
            assert torch.allclose(done.run(input_ids=ids[:2])["logits"], model(ids[:2])["logits"], atol=1e-5)


def test_numbers_that_are_not_finite_are_refused() -> None:
    model, ids = Chain().eval(), torch.randint(0, zoo.VOCAB, (8, 32))
    with torch.no_grad():
        model.table.weight[::3] = 1e30
    dense = moec.capture(model, {"input_ids": ids[:3, :7]}, {"input_ids": ("batch", "sequence")})
    calibration = Calibration(CalibrationText("text", 0, 32), "", ids.flatten())
    for how in ("active=2", "active=0.5, partition=coactivation"):
        with pytest.raises(MoecError, match="not finite"):
            Pipeline.parse(f"carve(experts=4, {how})").run(dense, Context(calibration=calibration))
