"""Weights of any rule in the forms that the operators take: beside each expert, or as logits."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode, read
from moec.backends.onnxruntime.experts.mixing import (
    CLOSED,
    flatten_tokens,
    log_shares,
    scatter_weights,
    spread_weights,
)
from tests.backends.onnxruntime.blocks import Experts, choice, experts_model, run, tokens

X = tokens(2, 3)
IDS, WEIGHTS = choice(2, 3)


def emitted(form: Callable[[Emitter, MoeNode], ir.Value], before: bool = False, top_k: int = 2) -> Tensor:
    """What a form gives for a block's inputs."""
    model = experts_model(Experts(), 3, top_k, score_before=before)
    node = model.graph[0]
    emit = Emitter(model.graph, node)
    result = form(emit, read(node))
    node.outputs[0].name, result.name, result.type = "unread", "y", ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs[0] = result
    model.graph.remove(node)
    return run(model, x=X, ids=IDS[..., :top_k], weights=WEIGHTS[..., :top_k])


def spread(ids: Tensor, weights: Tensor, otherwise: float = 0.0) -> Tensor:
    return torch.full((6, 6), otherwise).scatter(1, ids.reshape(6, -1), weights.reshape(6, -1))


def inputs(block: MoeNode) -> tuple[ir.Value, ir.Value, ir.DataType]:
    assert block.ids is not None and block.weights is not None
    return block.ids, block.weights, ir.DataType.FLOAT


def test_weights_stand_beside_their_experts() -> None:
    got = emitted(lambda emit, block: spread_weights(emit, block, *inputs(block))[1])
    assert torch.equal(got, spread(IDS, WEIGHTS)) and not torch.equal(got, spread(IDS.flip(-1), WEIGHTS))


@pytest.mark.parametrize("before", [False, True])
def test_the_one_weight_goes_onto_the_rows_where_it_comes_before(before: bool) -> None:
    rows = emitted(lambda emit, block: spread_weights(emit, block, *inputs(block))[0], before, top_k=1)
    share = emitted(lambda emit, block: spread_weights(emit, block, *inputs(block))[1], before, top_k=1)
    one = WEIGHTS[..., :1]
    assert torch.equal(rows, (X * one if before else X).reshape(6, -1))
    assert torch.equal(share, spread(IDS[..., :1], torch.ones_like(one) if before else one))


def test_a_softmax_of_the_logits_is_the_share_of_the_weights() -> None:
    def logits(emit: Emitter, block: MoeNode) -> ir.Value:
        ids, weights, _ = flatten_tokens(emit, block, *inputs(block))
        return scatter_weights(emit, block, ids, log_shares(emit, block, weights), CLOSED)

    want = spread(IDS, WEIGHTS / WEIGHTS.sum(-1, keepdim=True))
    assert torch.allclose(emitted(logits).softmax(-1), want, atol=1e-6)
    assert not torch.allclose(emitted(logits).softmax(-1), spread(IDS, WEIGHTS.softmax(-1)), atol=1e-3)
