"""Where padding may be moved behind a call's tokens, and where something else than attention would notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.backends.onnxruntime.attention.token_order import _is_fixed, masks, why_order_matters
from moec.program.program import Program
from tests.zoo import captured

aten = torch.ops.aten
MODELS = ["llama", "mistral", "phi3", "gpt2", "nemotron", "gemma2", "mixtral", "qwen2_moe", "gpt_oss", "olmoe",
          "glm4_moe", "granite_moe"]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_decoders_do_not_notice(name: str) -> None:
    assert why_order_matters(captured(name)) == ""


def with_hidden(target: Any, *arguments: Any) -> Program:
    """Llama, its embedded tokens passed through another operator."""
    program = captured("llama")
    (hidden,) = program.nodes(aten.embedding.default)
    with program.graph.inserting_after(hidden):
        node = program.graph.call_function(target, (hidden, *arguments))
        node.meta["val"] = hidden.meta["val"]
    hidden.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    return program


@pytest.mark.parametrize(("target", "arguments"), [
    (aten.cumsum.default, (1,)), (aten.roll.default, ([1], [1])), (aten.softmax.int, (1,)), (aten.flip.default, ([1],)),
    (aten.conv1d.default, ()), (aten.layer_norm.default, ([torch.SymInt, 32],)),
], ids=str)  # fmt: skip
def test_what_looks_at_other_tokens_does(target: Any, arguments: Any) -> None:
    assert "looks from one token at another" in why_order_matters(with_hidden(target, *arguments))


def test_what_looks_at_features_alone_does_not() -> None:
    assert why_order_matters(with_hidden(aten.softmax.int, -1)) == ""


def test_a_mean_over_everything_looks_at_other_tokens_in_a_fixed_batch_too() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    means = [graph.call_function(aten.mean.default, (x,)), graph.call_function(aten.mean.dim, (x, [0]))]
    assert [_is_fixed(torch.empty(1, 7, 32), node, 1) for node in means] == [False, True]


def test_places_have_to_come_from_the_mask() -> None:
    program = captured("llama")
    mask = next(node for node in program.graph.nodes if node.name == "attention_mask")
    counted = next(node for node in program.nodes(aten.cumsum.default) if mask in node.all_input_nodes)
    with program.graph.inserting_after(counted):
        places = program.graph.call_function(aten.full_like.default, (mask, 1))
        places.meta["val"] = mask.meta["val"]
        other = program.graph.call_function(aten.cumsum.default, (places, -1))
        places.append(other)
        other.meta["val"] = counted.meta["val"]
    counted.replace_all_uses_with(other)
    assert "is not counted from the mask" in why_order_matters(program)


@pytest.mark.parametrize("name", ["bert", "vit", "llama4"])
def test_other_models_say_why(name: str) -> None:
    assert why_order_matters(captured(name))


def test_masks_have_padding_everywhere() -> None:
    mask = masks(4, 3)
    assert mask[0].all() and (mask.sum(1) > 0).all() and len({tuple(row.tolist()) for row in mask}) == len(mask)
