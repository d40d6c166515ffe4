"""Weights that read the same tokens have one number for the whole weight."""

from __future__ import annotations

import torch

from moec.pipeline.pipeline import Pipeline
from moec.program.dialect_call import DEQUANTIZE_FLOAT, DequantizeFloatCall
from moec.program.program import Program
from moec.quantization.small_floats import overall_of
from moec.weights.lazy import from_tensor
from tests import zoo


def overalls(program: Program) -> dict[str, float]:
    """By the name of the codes."""
    found = {}
    for node in program.nodes(DEQUANTIZE_FLOAT):
        weight = program.weight_of(DequantizeFloatCall(node).overall)
        assert weight is not None
        found[str(DequantizeFloatCall(node).codes.target)] = float(weight.load())
    return found


def test_what_reads_the_same_tokens_has_one_number_and_nothing_else_has() -> None:
    program = zoo.captured("llama")
    made = overalls(Pipeline.parse("quantize(bits=4, format=nvfp4, lm_head=16)").run(program)[0])
    start = "model.layers.0."
    layer = {name.removeprefix(start).partition(".weight")[0]: value for name, value in made.items() if start in name}
    attention = {layer[f"self_attn.{x}_proj"] for x in "qkv"}
    feed_forward = {layer[f"mlp.{x}_proj"] for x in ("gate", "up")}
    assert len(attention) == len(feed_forward) == 1
    assert len({*attention, *feed_forward, layer["self_attn.o_proj"], layer["mlp.down_proj"]}) == 4
    q, k, v = (program.weights[f"model.layers.0.self_attn.{x}_proj.weight"].load() for x in "qkv")
    largest = float(torch.cat([q, k, v]).abs().max())
    (number,) = attention
    assert abs(number * 448 * 6 / largest - 1) < 1e-6


def test_the_inverse_of_the_inverse_is_the_number() -> None:
    """Files of other engines hold the inverse, in float32."""
    draw, lost = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        largest = torch.rand(1, 16, generator=draw) * 10
        one = overall_of([from_tensor(largest, "w")]).load()
        assert torch.equal(1 / (1 / one), one) and abs(float(one * 448 * 6 / largest.max()) - 1) < 1e-6
        plain = largest.max() / (448 * 6)
        lost += not torch.equal(1 / (1 / plain), plain)
    assert lost > 10  # of the plain ones many do not come back


def test_integers_have_none() -> None:
    assert overalls(Pipeline.parse("quantize(bits=4, group=16)").run(zoo.captured("llama"))[0]) == {}
