"""The experts' kernel for CPUs against float64, and against itself on other instruction sets, in other company."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moec.dialect import Activation
from moec.kernels.cpu.structures import open_library
from tests.backends.onnxruntime.blocks import ACTIVATIONS, choice, error, tokens
from tests.kernels.cpu.calls import ISAS, Mixture, Stack, here, run
from tests.kernels.cpu.exact import expected

LIMIT = 3e-6  # of float32 sums of some hundred products, in standard deviations
HALF_LIMIT = 3e-7  # of `expected`'s magnitude
SIZES = [(32, 24), (17, 5), (1, 1), (48, 33), (130, 70)]  # hidden, inner
ALL = [*ACTIVATIONS, Activation("silu", cap=0.8, up_cap=0.6), Activation("silu", alpha=1.5, up_cap=0.7)]


@pytest.fixture(scope="session")
def library(cpu_kernels_file: Path) -> ctypes.CDLL:
    return open_library(cpu_kernels_file)


def mixture(
    hidden: int = 32, inner: int = 24, rule: Activation | None = None, biases: bool = False, experts: int = 6,
    bits: int = 32, group: int = 64, zeros: bool = False, score_before: bool = False,
) -> Mixture:  # fmt: skip
    g = torch.Generator().manual_seed(hidden + inner)
    rule = rule or Activation()
    make = lambda *s: torch.randn(*s, generator=g) / s[-1] ** 0.5  # noqa: E731
    shapes = (experts, rule.rows_per_neuron * inner, hidden), (experts, hidden, inner)
    stacks = []
    for shape in shapes:
        weight, bias = make(*shape), make(*shape[:2]) if biases else None
        whole = Stack(weight, shape[2], bias=bias)
        dense = {32: whole, 16: halved(whole)}
        stacks.append(dense.get(bits) or Stack.packed(weight, bits, group, zeros, bias))
    return Mixture(*stacks, rule, score_before)


def halved(stack: Stack) -> Stack:
    """The same numbers, rounded to bfloat16."""
    bias = None if stack.bias is None else stack.bias.bfloat16()
    return replace(stack, data=stack.data.bfloat16(), bias=bias, bits=16)


def widened(stack: Stack) -> Stack:
    """The numbers of bfloat16 in float32."""
    return replace(stack, data=stack.dense(), bias=None if stack.bias is None else stack.bias.float(), bits=32)


def wanted(block: Mixture, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The dialect's own reference, in float64."""
    rule = block.activation.arguments()
    y = torch.ops.moec.experts(x.double(), ids, weights.double(), *block.wide, **rule, score_before=block.score_before)
    return y.float()


def call(n: int, hidden: int, top_k: int = 2, experts: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    return tokens(n, hidden=hidden), *choice(n, experts=experts, top_k=top_k)


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("rule", ALL, ids=str)
def test_every_activation(library: ctypes.CDLL, rule: Activation, biases: bool) -> None:
    block, given = mixture(rule=rule, biases=biases), call(9, 32)
    want = wanted(block, *given)
    for isa in here(library):
        assert error(run(library, block, *given, isa=isa), want) < LIMIT, isa
    others = [a for a in ALL if a != rule and a.gated == rule.gated]
    assert all(error(wanted(mixture(rule=a, biases=biases), *given), want) > 10 * LIMIT for a in others)


@pytest.mark.parametrize("hidden, inner", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 50, 200])
def test_every_size_on_every_instruction_set_bit_for_bit(
    library: ctypes.CDLL, hidden: int, inner: int, count: int
) -> None:
    block, given = mixture(hidden, inner, biases=True), call(count, hidden)
    found = [run(library, block, *given, isa=isa) for isa in here(library)]
    want = wanted(block, *given)
    assert float((found[0] - want).abs().max()) < LIMIT * 10
    assert all(torch.equal(found[0], other) for other in found)


def far(found: Tensor, block: Mixture, x: Tensor, ids: Tensor, weights: Tensor) -> float:
    """How far a result is from float64, in magnitudes of rounding."""
    want, size, slack = expected(block, x, ids, weights)
    return float((((found.double() - want).abs() - slack).amax(1) / size).max())


@pytest.mark.parametrize("hidden, inner", [*SIZES, (256, 128)])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 50, 200])
@pytest.mark.parametrize("score_before", [False, True], ids=["", "score_before"])
def test_bfloat16_is_summed_in_pairs_on_every_instruction_set_bit_for_bit(
    library: ctypes.CDLL, hidden: int, inner: int, count: int, score_before: bool
) -> None:
    block, given = mixture(hidden, inner, biases=True, bits=16, score_before=score_before), call(count, hidden)
    found = [run(library, block, *given, isa=isa) for isa in here(library)]
    assert all(torch.equal(found[0], other) for other in found)
    assert far(found[0], block, *given) < HALF_LIMIT
    same = replace(block, first=widened(block.first), second=widened(block.second))
    unrounded = run(library, same, given[0].bfloat16().float(), *given[1:])
    want = expected(block, *given)[0].float()
    assert (unrounded - want).norm() > 5 * max((found[0] - want).norm(), 1e-6 * want.norm()) or inner == 1


def test_what_is_too_small_counts_as_zero_in_bfloat16(library: ctypes.CDLL) -> None:
    """As VDPBF16PS does it: below 2^-126, before and behind each step. Sums that cancel to there too."""
    rule = Activation("relu", gated=False)
    block, (x, ids, weights) = mixture(130, 70, rule=rule, bits=16), call(60, 130)
    scales = 10.0 ** torch.arange(-41.0, -35.0, 0.1)[:, None]
    for small in (x * scales, torch.where(torch.arange(130) % 3 == 0, x * 1e-38, x * 1e-36)):
        found = [run(library, block, small, ids, weights, isa=isa) for isa in here(library)]
        assert all(torch.equal(found[0], other) for other in found)
    assert not run(library, block, torch.full_like(x, 1e-39), ids, weights).any()
    assert run(library, block, torch.full_like(x, 1e-36), ids, weights).any()
    assert run(
        library, mixture(130, 70, rule=rule), torch.full_like(x, 1e-39), ids, weights
    ).any()  # float32 keeps them


def test_both_matrices_are_in_bfloat16_or_none(library: ctypes.CDLL) -> None:
    wide, half = mixture(), mixture(bits=16)
    for block in (replace(wide, second=half.second), replace(half, second=wide.second)):
        with pytest.raises(ValueError, match="both matrices are in bfloat16, or none"):
            run(library, block, *call(3, 32))


@pytest.mark.parametrize("zeros", [False, True], ids=["", "zeros"])
@pytest.mark.parametrize("bits, group", [(8, 16), (8, 64), (4, 32), (4, 128), (2, 64)])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_codes_are_the_numbers_that_they_stand_for(
    library: ctypes.CDLL, bits: int, group: int, zeros: bool, count: int
) -> None:
    block, given = mixture(256, 128, biases=True, bits=bits, group=group, zeros=zeros), call(count, 256)
    want = wanted(block, *given)
    found = [run(library, block, *given, isa=isa) for isa in here(library)]
    assert error(found[0], want) < LIMIT
    assert all(torch.equal(found[0], other) for other in found)
    other = mixture(256, 128, biases=True, bits=bits, group=group, zeros=not zeros)
    assert error(wanted(other, *given), want) > 100 * LIMIT


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_token_is_the_same_in_any_company(library: ctypes.CDLL, bits: int) -> None:
    block, (x, ids, weights) = mixture(128, 64, bits=bits), call(70, 128)
    together = run(library, block, x, ids, weights)
    alone = torch.cat([run(library, block, x[t : t + 1], ids[t : t + 1], weights[t : t + 1]) for t in range(70)])
    assert torch.equal(together, alone)
    assert torch.equal(together, run(library, block, x, ids, weights, reversed_=True))
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
    assert torch.equal(together[order], run(library, block, x[order], ids[order], weights[order]))


def test_routing_of_any_kind(library: ctypes.CDLL) -> None:
    block = mixture(biases=True)
    x, ids, weights = call(7, 32, top_k=6)
    one = torch.full((7, 1), 4)
    repeated = torch.tensor([[3, 3]] * 7)
    for given in ((x, ids, weights), (x, one, torch.ones(7, 1)), (x, repeated, torch.tensor([[0.5, -2.0]] * 7))):
        assert error(run(library, block, *given), wanted(block, *given)) < LIMIT
    before = mixture(biases=True, score_before=True)
    assert error(run(library, before, x, ids, weights), wanted(before, x, ids, weights)) < LIMIT
    assert error(wanted(before, x, ids, weights), wanted(block, x, ids, weights)) > 0.1
    assert run(library, block, x[:0], ids[:0], weights[:0]).shape == (0, 32)
    for wrong in (-1, 6, 2**40):
        with pytest.raises(ValueError, match="no expert"):
            run(library, block, x, torch.full((7, 1), wrong), torch.ones(7, 1))


@pytest.mark.parametrize("count", [1, 9, 120])
@pytest.mark.parametrize("score_before", [False, True], ids=["", "score_before"])
def test_a_choice_of_weight_zero_is_left_out_where_that_is_said(
    library: ctypes.CDLL, score_before: bool, count: int
) -> None:
    block = mixture(score_before=score_before)
    leaving = replace(block, left_out=True)
    x, ids, weights = call(count, 32)
    assert torch.equal(run(library, block, x, ids, weights), run(library, leaving, x, ids, weights))
    weights[::2, 0] = 0
    weights[-1] = 0
    want = wanted(block, x, ids, weights)
    assert error(run(library, leaving, x, ids, weights), want) < LIMIT or not weights.any()
    x[-1] = torch.nan
    assert run(library, block, x, ids, weights)[-1].isnan().all()
    assert not run(library, leaving, x, ids, weights)[-1].any()
    assert not run(library, leaving, x, ids, weights * 0).any()


@pytest.mark.parametrize("bits", [32, 16, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_what_is_no_number_stays_with_its_token(library: ctypes.CDLL, bits: int, value: float) -> None:
    block, (x, ids, weights) = mixture(128, 64, bits=bits), call(9, 128)
    clean = run(library, block, x, ids, weights)
    x[4, 5] = value
    for isa in here(library):
        found = run(library, block, x, ids, weights, isa=isa)
        assert not found[4].isfinite().all()
        assert torch.equal(found[torch.arange(9) != 4], clean[torch.arange(9) != 4])


def test_a_wrong_weight_is_seen(library: ctypes.CDLL) -> None:
    block, given = mixture(), call(9, 32)
    want = wanted(block, *given)
    for stack in (block.first, block.second):
        row = stack.data[int(given[1][0, 0]), 0]
        row *= 1.03
        assert error(run(library, block, *given), want) > 10 * LIMIT
        row /= 1.03


class _Fenced:
    """Buffers with a page behind them, or before them, that nobody may touch."""

    def __init__(self, at_the_end: bool) -> None:
        self.at_the_end, self.held = at_the_end, list[mmap.mmap]()

    def __call__(self, tensor: Tensor) -> Tensor:
        page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
        room = -(-max(size, 1) // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        self.held.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for place in (start, start + page + room):
            assert protect(ctypes.c_void_p(place), ctypes.c_size_t(page), 0) == 0
        offset = page + (room - size if self.at_the_end else 0)
        found = torch.frombuffer(memory, dtype=tensor.dtype, count=max(tensor.numel(), 1), offset=offset)
        found[: tensor.numel()] = tensor.flatten()
        return found[: tensor.numel()].view(tensor.shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_the_end", [True, False], ids=["end", "start"])
def test_no_byte_outside_of_a_buffer_is_touched(library: ctypes.CDLL, isa: str, at_the_end: bool) -> None:
    if isa not in here(library):
        pytest.skip(f"this processor has no {isa}")
    cases: list[Callable[[], Mixture]] = [lambda h=h, i=i: mixture(h, i, biases=True) for h, i in SIZES]  # type: ignore[misc]
    cases += [lambda h=h, i=i: mixture(h, i, biases=True, bits=16) for h, i in SIZES]  # type: ignore[misc]
    cases += [lambda b=b: mixture(192, 64, biases=True, bits=b, zeros=True) for b in (8, 4, 2)]  # type: ignore[misc]
    for case in cases:
        block = case()
        for count in (1, 4, 23):
            given = call(count, block.first.columns)
            fenced = run(library, block, *given, isa=isa, place=_Fenced(at_the_end))
            assert torch.equal(fenced, run(library, block, *given, isa=isa))
