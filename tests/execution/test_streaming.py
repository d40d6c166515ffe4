"""A streamed program computes what the loaded one computes, and never holds more than a block."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from moec.dialect import pack
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.execution.streaming import StreamingEngine, check_finite, largest_piece_bytes
from moec.frontend.export import capture
from moec.program.program import Program
from moec.weights.lazy import Weight
from tests.moe_module import EXPERTS, MoeModel, source_of


def close(program: Program, other: Program, **inputs: Tensor) -> bool:
    want, got = EagerEngine(other)(**inputs), StreamingEngine(program)(**inputs)
    return all(torch.allclose(want[k], got[k], rtol=1e-5, atol=1e-5) for k in want)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (4, 29)])
def test_equals_the_program_in_memory(fused: bool, shape: tuple[int, int]) -> None:
    program = source_of(MoeModel((fused, fused))).capture()
    ids = torch.randint(0, 50, shape)
    assert close(program, program, input_ids=ids)
    assert not close(program, source_of(MoeModel((fused, fused), seed=1)).capture(), input_ids=ids)


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Buffer(pack(torch.randint(0, 16, (EXPERTS, 24, 16)), 4))
        self.scale, self.out = nn.Buffer(torch.rand(EXPERTS, 24, 1)), nn.Parameter(torch.randn(EXPERTS, 16, 12))

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = torch.ops.moec.route(x[..., :EXPERTS], top_k=2)
        w_in = torch.ops.moec.dequantize(self.packed, self.scale, None, bits=4)
        return torch.ops.moec.experts(x, ids, weights, w_in, self.out)


def test_a_quantized_weight_is_unpacked_expert_by_expert() -> None:
    program = capture(Quantized(), {"x": torch.randn(5, 16)}, {"x": ("tokens", None)})
    meter = Meter()
    assert close(metered(program, meter), program, x=torch.randn(7, 16))
    assert meter.peak_bytes <= max(w.size_bytes // EXPERTS for w in program.weights.values()) * 2


class Meter:
    """Bytes of weights that are alive, and the most that ever were."""

    def __init__(self) -> None:
        self.live_bytes = self.peak_bytes = 0

    def watch(self, value: Tensor) -> Tensor:
        copy = value.clone()  # its own storage, so that it dies when the reader lets go
        self.live_bytes += copy.nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(copy, self._gone, copy.nbytes)
        return copy

    def _gone(self, size_bytes: int) -> None:
        self.live_bytes -= size_bytes


def metered(program: Program, meter: Meter) -> Program:
    program = program.clone()
    for name, weight in program.weights.items():
        program.weights[name] = replace(weight, read=lambda a, b, w=weight: meter.watch(w.read(a, b)))
    return program


def test_the_peak_follows_the_largest_block_not_the_model() -> None:
    program = source_of(MoeModel()).capture()
    one_expert = max(w.size_bytes // EXPERTS for n, w in program.weights.items() if "w_in" in n)
    head = program.weights["head.weight"].size_bytes + program.weights["head.bias"].size_bytes
    meter = Meter()
    StreamingEngine(metered(program, meter))(input_ids=torch.randint(0, 50, (2, 7)))
    assert 0 < meter.peak_bytes <= max(2 * one_expert, head)
    assert meter.live_bytes == 0

    loaded = Meter()  # the mutant: loading the program holds all of it at once
    kept = [w.load() for w in metered(program, loaded).weights.values()]
    assert kept and loaded.peak_bytes > 4 * meter.peak_bytes


def poisoned(weight: Weight, value: float) -> Weight:
    def read(start: int, stop: int) -> Tensor:
        block = weight.read(start, stop).clone()
        if stop == weight.shape[0]:
            block.view(-1)[-1] = value
        return block

    return replace(weight, read=read)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    program = source_of(MoeModel()).capture()
    check_finite(program)
    program.weights["blocks.1.w_out"] = poisoned(program.weights["blocks.1.w_out"], value)
    with pytest.raises(MoecError, match=r"blocks\.1\.w_out") as error:
        check_finite(program)
    assert error.value.code == "M105"


def test_large_finite_weights_are_not_mistaken_for_infinite_ones() -> None:
    program = source_of(MoeModel()).capture()
    program.weights["head.weight"] = replace(
        program.weights["head.weight"], read=lambda a, b: torch.full((b - a, 16), 3e38)
    )
    check_finite(program)


def test_the_largest_piece_is_an_expert_or_what_no_consumer_takes_by_rows() -> None:
    program = capture(Quantized(), {"x": torch.randn(5, 16)}, {"x": ("tokens", None)})
    assert largest_piece_bytes(program) == 16 * 12 * 4, (
        "one expert's second matrix; the first has 8-bit codes of 24 x 16"
    )
    whole = capture(nn.Conv1d(16, 8, 3), {"input": torch.randn(2, 16, 9)}, {"input": ("batch", None, None)})
    assert largest_piece_bytes(whole) == 16 * 8 * 3 * 4
    by_rows = capture(nn.Linear(16, 100), {"input": torch.randn(2, 16)}, {"input": ("batch", None)})
    assert largest_piece_bytes(by_rows) == 16 * 4
