"""What is seen inside a program is what the program computes with."""

from __future__ import annotations

import torch
from torch import nn

from moec.dialect import Routing, route_reference
from moec.execution.choices import choice, logits_of
from moec.execution.trace import trace, trace_module
from moec.program.moe_call import moe_nodes
from moec.program.provenance import module_path, module_paths
from tests.moe_module import EXPERTS, MoeModel, source_of


def test_every_operators_value_and_inputs_are_shown() -> None:
    model = MoeModel((False, True))
    program = source_of(model).capture()
    ids = torch.randint(0, 50, (2, 7))
    seen = {}
    trace(program, {"input_ids": ids}, lambda node, value, args, kwargs: seen.update({node.name: (value, args)}))
    embedding = next(n for n in program.nodes(torch.ops.aten.embedding.default))
    assert torch.equal(seen[embedding.name][0], model.embedding(ids))
    assert torch.equal(seen[embedding.name][1][1], ids)


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


def test_nodes_know_their_modules() -> None:
    program = source_of(MoeModel()).capture()
    assert [module_path(n) for n in moe_nodes(program)] == ["blocks.0", "blocks.1"]
    norm = program.nodes(torch.ops.aten.layer_norm.default)[1]
    assert module_paths(norm) == ["", "norms.1"]


def test_modules_are_watched_in_the_order_in_which_they_finish_and_let_go_afterwards() -> None:
    model = MoeModel()
    ids = torch.randint(0, 50, (1, 4))
    found = trace_module(model, lambda: model(ids))
    assert list(found) == ["embedding", "norms.0", "blocks.0", "norms.1", "blocks.1", "head"]
    assert torch.equal(found["head"][0], model(ids)["logits"])
    assert not any(m._forward_hooks for m in model.modules())
