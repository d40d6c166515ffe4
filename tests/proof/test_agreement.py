"""Choices of experts and errors of layers, between a program and the same, rewritten or spoiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.agreement import measure_agreement
from moec.weights.lazy import scale
from tests.moe_module import EXPERTS, MoeModel, source_of

SAMPLES = [{"input_ids": torch.randint(0, 50, (b, 9), generator=torch.Generator().manual_seed(b))} for b in (2, 1)]


@pytest.fixture(scope="module")
def program() -> Program:
    return source_of(MoeModel()).capture()


def test_a_rewritten_program_agrees_with_itself(program: Program) -> None:
    fused, _ = Pipeline.parse("fuse-moe").run(program)
    found = measure_agreement(program, fused, SAMPLES)
    assert found.tokens == 27 and [b.module for b in found.blocks] == ["blocks.0", "blocks.1"]
    assert all(b.shared == b.identical == 1 and b.load == b.load_after and sum(b.load) == 54 for b in found.blocks)
    assert {layer.module for layer in found.layers} == {"blocks.0", "blocks.1", "norms.0", "norms.1"}
    assert all(layer.relative < 1e-5 for layer in found.layers)


def test_another_routers_choices_are_counted(program: Program) -> None:
    model = MoeModel()
    torch.manual_seed(5)
    model.blocks[0].router = nn.Parameter(torch.randn(EXPERTS, 16))
    found = measure_agreement(program, source_of(model).capture(), SAMPLES)
    masks = [chosen(m, 0) for m in (MoeModel(), model)]
    shared, identical = (
        (masks[0] & masks[1]).sum().item() / masks[0].sum().item(),
        (masks[0] == masks[1]).all(-1).double().mean().item(),
    )
    block = found.blocks[0]
    assert (
        block.shared == pytest.approx(shared)
        and block.identical == pytest.approx(identical)
        and 0 < identical < shared < 1
    )
    assert block.load == tuple(masks[0].sum(0).tolist()) and block.load_after == tuple(masks[1].sum(0).tolist())


def chosen(model: MoeModel, block: int) -> Tensor:
    """Masks `[T, E]` from the modules themselves; for the first block only, whose input is the embedding."""
    logits = [
        nn.functional.linear(model.norms[block](model.embedding(s["input_ids"])), model.blocks[block].router).reshape(
            -1, EXPERTS
        )
        for s in SAMPLES
    ]
    ids = torch.cat(logits).topk(2).indices
    return torch.zeros(len(ids), EXPERTS, dtype=torch.bool).scatter(1, ids, True)


def test_errors_of_layers_begin_where_the_weight_is(program: Program) -> None:
    spoiled = program.clone()
    spoiled.weights["norms.1.weight"] = scale(spoiled.weights["norms.1.weight"], 1.25)
    errors = {layer.module: layer.relative for layer in measure_agreement(program, spoiled, SAMPLES).layers}
    assert errors["norms.0"] == errors["blocks.0"] == 0
    assert errors["norms.1"] == pytest.approx(0.25, rel=1e-4) and errors["blocks.1"] > 0.1


def test_blocks_that_are_only_on_one_side_are_left_out(program: Program) -> None:
    class Dense(MoeModel):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            x = self.embedding(input_ids)
            return {"logits": self.head(x + self.blocks[1](self.norms[1](x)))}

    found = measure_agreement(program, source_of(Dense()).capture(), SAMPLES)
    assert [b.module for b in found.blocks] == ["blocks.1"] and {layer.module for layer in found.layers} == {
        "blocks.1",
        "norms.1",
    }
