"""What a program's MoE operators chose is what the routing chooses."""

from __future__ import annotations

import torch
from torch import nn

from moec.dialect import Routing, route_reference
from moec.execution.choices import choice, logits_of
from moec.execution.trace import trace
from moec.program.moe_call import moe_nodes
from tests.moe_module import EXPERTS, MoeModel, source_of


def test_choices_of_both_operators_are_those_of_the_routing() -> None:
    model = MoeModel((False, True))
    program = source_of(model).capture()
    found = {}

    def watch(node, value, args, kwargs):  # type: ignore[no-untyped-def]
        if node.target in {n.target for n in moe_nodes(program)}:
            found[node.name] = (args[0], *choice(node, args, kwargs))
        if routing := logits_of(node, args, kwargs):
            assert routing[0].shape[-1] == EXPERTS and routing[2] == Routing(2)

    trace(program, {"input_ids": torch.randint(0, 50, (2, 7))}, watch)
    for (x, weights, ids, count), block in zip(found.values(), model.blocks, strict=True):
        want_weights, want_ids = route_reference(nn.functional.linear(x, block.router.detach()), None, Routing(2))
        assert count == EXPERTS and torch.equal(ids, want_ids.reshape(-1, 2))
        assert torch.allclose(weights, want_weights.reshape(-1, 2))
