"""What is seen inside a program is what the program computes with."""

from __future__ import annotations

import torch

from moec.execution.trace import trace, trace_module
from tests.moe_module import MoeModel, source_of


def test_every_operators_value_and_inputs_are_shown() -> None:
    model = MoeModel((False, True))
    program = source_of(model).capture()
    ids = torch.randint(0, 50, (2, 7))
    seen = {}
    trace(program, {"input_ids": ids}, lambda node, value, args, kwargs: seen.update({node.name: (value, args)}))
    embedding = next(n for n in program.nodes(torch.ops.aten.embedding.default))
    assert torch.equal(seen[embedding.name][0], model.embedding(ids))
    assert torch.equal(seen[embedding.name][1][1], ids)


def test_modules_are_watched_in_the_order_in_which_they_finish_and_let_go_afterwards() -> None:
    model = MoeModel()
    ids = torch.randint(0, 50, (1, 4))
    found = trace_module(model, lambda: model(ids))
    assert list(found) == ["embedding", "norms.0", "blocks.0", "norms.1", "blocks.1", "head"]
    assert torch.equal(found["head"][0], model(ids)["logits"])
    assert not any(m._forward_hooks for m in model.modules())
