"""Where a router begins and ends in a graph, and why a piece of graph is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.recognition.router_region import NotARouter, Region, find_region, is_routed, own_vector
from tests.routers import EXPERTS, Block, Router, captured, deepseek_v3, ernie, granite, minimax, mixtral

aten = torch.ops.aten


def region_of(router: Router) -> Region:
    program = captured(Block(router))
    (node,) = program.nodes(torch.ops.moec.experts)
    assert not is_routed(node.args[1])  # type: ignore[arg-type]
    return find_region(program, *node.args[1:3])  # type: ignore[arg-type]


@pytest.mark.parametrize("router", [mixtral, granite, deepseek_v3, ernie, minimax], ids=lambda r: r.__name__)
def test_it_begins_at_the_projection_and_ends_at_the_experts(router: Router) -> None:
    region = region_of(router)
    assert region.logits.target is aten.linear.default and region.experts == EXPERTS
    assert region.logits not in region.nodes and region.ids in region.nodes and region.weights in region.nodes
    assert region.selection.target is aten.topk.default and region.top_k == region.ids.meta["val"].shape[-1]
    assert (region.bias is None) is (router in (mixtral, granite))


def test_the_bias_is_the_models_own_weight() -> None:
    bias = region_of(minimax).bias
    assert bias is not None and own_vector(bias).target == "correction"
    squeezed = region_of(ernie).bias
    assert squeezed is not None and tuple(own_vector(squeezed).meta["val"].shape) == (EXPERTS,)


def two_biases(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    ids = (scores * bias.exp() + bias).topk(2).indices
    return scores.gather(1, ids), ids


def changed_in_place(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.softmax(-1)
    scores[:, 0] = 0.5
    weights, ids = scores.topk(2)
    return weights, ids


def beside(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = logits.relu().softmax(-1).topk(2)
    return weights * logits.mean(-1, keepdim=True), ids


def rounded_logits(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = logits.bfloat16().float().softmax(-1).topk(2)
    return weights, ids


def rounded_weights(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = logits.softmax(-1).topk(2)
    return weights.half().float(), ids


@pytest.mark.parametrize(
    ("router", "reason"),
    [
        (two_biases, "more than a correction bias"),
        (changed_in_place, "changed in place"),
        (beside, "more than the logits relu"),
        (rounded_logits, "rounds to bfloat16"),
        (rounded_weights, "rounds to float16"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_why_it_is_none(router: Router, reason: str) -> None:
    with pytest.raises(NotARouter, match=reason):
        region_of(router)
