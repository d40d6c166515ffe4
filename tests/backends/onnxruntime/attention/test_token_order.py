"""Where padding may be moved behind a call's tokens, and where something else than attention would notice."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

from moec.backends.onnxruntime.attention.token_order import _is_fixed, masks, why_order_matters
from moec.huggingface.source import HuggingFaceSource
from moec.program.program import Program
from tests.zoo import build, captured

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


def met(program: Program, make: Any) -> Program:
    """Llama, its embedded tokens multiplied with what `make` makes of graph and mask: a node and its value."""
    mask = next(node for node in program.graph.nodes if node.name == "attention_mask")
    (hidden,) = program.nodes(aten.embedding.default)
    with program.graph.inserting_after(hidden):
        number, value = make(program.graph, mask)
        number.meta["val"] = value
        number.append(product := program.graph.call_function(aten.mul.Tensor, (hidden, number)))
        product.meta["val"] = hidden.meta["val"]
    hidden.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)
    return program


@pytest.mark.parametrize("make", [
    lambda graph, mask: (graph.call_function(aten.sum.default, (mask,)), torch.ones(())),
    lambda graph, mask: (graph.call_function(aten.amax.default, (mask, [0], True)), mask.meta["val"][:1, :, None]),
    lambda graph, mask: (graph.call_function(aten.sym_size.int, (mask, 1)), mask.meta["val"].shape[1]),
], ids=["of all", "of each place", "a size"])  # fmt: skip
def test_a_number_for_all_texts_is_refused(make: Any) -> None:
    assert "is one number for all texts" in why_order_matters(met(captured("llama"), make))


def test_what_takes_another_text_s_mask_is_refused() -> None:
    def make(graph: torch.fx.Graph, mask: torch.fx.Node) -> Any:
        new = next(n for n in graph.nodes if n.name == "input_ids").meta["val"]
        flipped = graph.call_function(aten.flip.default, (mask, [0]))
        flipped.meta["val"] = mask.meta["val"]
        size = graph.call_function(aten.sym_size.int, (next(n for n in graph.nodes if n.name == "input_ids"), 1))
        size.meta["val"] = new.shape[1]
        start = graph.call_function(operator.neg, (size,))
        start.meta["val"] = -new.shape[1]
        part = graph.call_function(aten.slice.Tensor, (flipped, 1, start, 2**63 - 1))
        part.meta["val"] = new
        for before, after in ((flipped, size), (size, start), (start, part)):
            before.append(after)
        part.append(last := graph.call_function(aten.unsqueeze.default, (part, 2)))
        return last, new[:, :, None]

    assert "mixes texts" in why_order_matters(met(captured("llama"), make))


@pytest.mark.parametrize("rope", [
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
     "original_max_position_embeddings": 300, "factor": 4.0},
], ids=lambda r: r["rope_type"])  # fmt: skip
def test_a_table_that_the_longest_text_chooses_is_refused(rope: dict[str, Any]) -> None:
    """At a length that no mask here has: which of two tables is taken follows from the batch's last position."""
    model = build("llama", rope_parameters=rope, max_position_embeddings=1200, head_dim=8)
    assert "is one number for all texts" in why_order_matters(HuggingFaceSource.from_model(model).capture())


@pytest.mark.parametrize("name", ["bert", "vit", "llama4"])
def test_other_models_say_why(name: str) -> None:
    assert why_order_matters(captured(name))


def test_masks_have_padding_everywhere() -> None:
    mask = masks(4, 3)
    assert mask[0].all() and (mask.sum(1) > 0).all() and len({tuple(row.tolist()) for row in mask}) == len(mask)
