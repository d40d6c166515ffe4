"""The operator for CPUs on PyTorch's tensors and threads, against the dialect's reference in float64."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import moec.dialect  # noqa: F401
from moec.dialect import Activation
from moec.errors import MoecError
from moec.kernels.cpu import pytorch, team
from tests.backends.onnxruntime.blocks import choice, error, tokens
from tests.kernels.cpu.calls import Mixture
from tests.kernels.cpu.test_experts import LIMIT, mixture

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture
def installed(cpu_kernels: Any) -> Iterator[None]:
    pytorch._library.cache_clear()
    yield
    pytorch._library.cache_clear()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def operands(block: Mixture) -> tuple[Tensor | None, ...]:
    return block.first.data, block.second.data, block.first.bias, block.second.bias


def run(block: Mixture, x: Tensor, ids: Tensor, weights: Tensor, operator: str = "experts_on_cpu") -> Tensor:
    rule = block.activation.arguments()
    result: Tensor = getattr(torch.ops.moec, operator)(
        x, ids, weights, *operands(block), **rule, score_before=block.score_before
    )
    return result


def wanted(block: Mixture, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    rule = block.activation.arguments()
    exact = torch.ops.moec.experts(
        x.double(), ids, weights.double(), *block.wide, **rule, score_before=block.score_before
    )
    return exact.float()


@pytest.mark.parametrize("score_before", [False, True], ids=["", "score_before"])
@pytest.mark.parametrize("rule", [Activation(), Activation("relu2", gated=False)], ids=str)
def test_any_leading_sizes(rule: Activation, score_before: bool) -> None:
    block = mixture(rule=rule, biases=True, score_before=score_before)
    x, (ids, weights) = tokens(12, hidden=32), choice(12, experts=6, top_k=2)
    want = wanted(block, x, ids, weights)
    for shape in ((12,), (3, 4), (2, 3, 2)):
        found = run(block, *(t.unflatten(0, shape) for t in (x, ids, weights)))
        assert found.shape == (*shape, 32) and error(found.flatten(0, -2), want) < LIMIT
    assert run(block, x[:0], ids[:0], weights[:0]).shape == (0, 32)
    assert error(wanted(block, x, ids.roll(1, 0), weights), want) > 0.1  # a wrong routing


def test_strided_tokens_are_read_right() -> None:
    block, wide = mixture(), tokens(10, hidden=64)
    ids, weights = choice(10, experts=6, top_k=2)
    x = wide[:, ::2]
    turned = ids.T.contiguous().T, weights.T.contiguous().T
    assert error(run(block, x, *turned), wanted(block, x, ids, weights)) < LIMIT


@pytest.mark.usefixtures("threads")
def test_threads_change_no_bit_and_every_thread_may_call() -> None:
    block, x, (ids, weights) = mixture(256, 300), tokens(33, hidden=256), choice(33, experts=6, top_k=2)
    found: list[Tensor] = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(run(block, x, ids, weights))
        assert team.parallel() is not None or count == 1, "PyTorch's OpenMP library was not found"
    callers = [threading.Thread(target=lambda: found.append(run(block, x, ids, weights))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 6 and all(torch.equal(found[0], other) for other in found)
    assert error(found[0], wanted(block, x, ids, weights)) < LIMIT


@pytest.mark.usefixtures("threads")
def test_work_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is started by the function that is handed in, with as many threads as PyTorch has."""
    import ctypes

    kind, seen = ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), *[ctypes.c_void_p] * 3), []

    def whole(fn: Any, data: int, count: int, flags: int) -> None:
        seen.append((count, flags))
        for _ in range(count):
            fn(data)

    own = kind(whole)
    monkeypatch.setattr(pytorch, "parallel", lambda: ctypes.cast(own, ctypes.c_void_p).value)
    torch.set_num_threads(3)
    block, x, (ids, weights) = mixture(256, 300), tokens(5, hidden=256), choice(5, experts=6, top_k=2)
    assert error(run(block, x, ids, weights), wanted(block, x, ids, weights)) < LIMIT
    assert seen == [(3, None)] * 2


def test_bfloat16_is_rounded_at_the_border_alone() -> None:
    block, (ids, weights) = mixture(130, 70, biases=True, bits=16), choice(40, experts=6, top_k=2)
    x = tokens(40, hidden=130).bfloat16()
    found, want = run(block, x, ids, weights.bfloat16()), wanted(block, x, ids, weights.bfloat16())
    assert found.dtype == torch.bfloat16
    assert float((found.float() - want).abs().max()) < 2**-8 * float(want.abs().max())
    reference = run(block, x, ids, weights.bfloat16(), "experts")  # rounds between the products
    assert error(reference.float(), want) > error(found.float(), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_of_the_choices_keep_their_own_dtype(dtype: torch.dtype) -> None:
    """As in eager PyTorch, which multiplies float32 weights of a router with rows in bfloat16."""
    block, (ids, weights) = mixture(bits=16 if dtype == torch.bfloat16 else 32), choice(40, experts=6, top_k=2)
    x = tokens(40, hidden=32).to(dtype)
    found = run(block, x, ids, weights)
    assert found.dtype == dtype
    want = wanted(block, x, ids, weights)
    assert float((found.float() - want).abs().max()) < torch.finfo(dtype).eps * 32 * float(want.abs().max())
    rounded = run(block, x.to(dtype), ids, weights.bfloat16())
    assert not torch.equal(found, rounded)
    assert torch.equal(run(block, x, ids, weights.double()), found)


def test_mixed_dtypes_are_refused_as_eager_pytorch_does() -> None:
    wide, half = mixture(biases=True), mixture(biases=True, bits=16)
    x, (ids, weights) = tokens(4, hidden=32), choice(4, experts=6, top_k=2)
    mixed = [
        (x.bfloat16(), *operands(wide)),
        (x, *operands(half)),
        (x, wide.first.data, half.second.data, wide.first.bias, wide.second.bias),
        (x, *operands(wide)[:2], half.first.bias, wide.second.bias),
        (x.half(), *operands(half)),
    ]
    for tokens_, *matrices in mixed:
        with pytest.raises(MoecError, match=r"x is torch\.\w+ on cpu, \w+ is torch") as refused:
            torch.ops.moec.experts_on_cpu(tokens_, ids, weights, *matrices)
        assert refused.value.code == "M212" and "to one dtype" in refused.value.fix
    for wrong in ((x, ids.int(), weights), (x, ids, weights.long())):
        with pytest.raises(MoecError, match="ids as int64"):
            torch.ops.moec.experts_on_cpu(*wrong, *operands(wide))


def test_what_the_library_does_not_read_goes_to_the_reference_with_a_warning() -> None:
    block, x, (ids, weights) = mixture(biases=True), tokens(4, hidden=32), choice(4, experts=6, top_k=2)
    rule, want = block.activation.arguments(), wanted(block, x, ids, weights)
    turned = [t if t is None or t.dim() == 2 else t.mT.contiguous().mT for t in operands(block)]
    with pytest.warns(RuntimeWarning, match="slowly: rows .* call moec.accelerate"):
        found = torch.ops.moec.experts_on_cpu(x, ids, weights, *turned, **rule)
    assert not torch.equal(found, run(block, x, ids, weights))
    assert torch.equal(found, torch.ops.moec.experts(x, ids, weights, *turned, **rule))
    with pytest.warns(RuntimeWarning, match="float64; moec's kernels take bfloat16 or float32"):
        exact = torch.ops.moec.experts_on_cpu(x.double(), ids, weights.double(), *block.wide, **rule)
    assert exact.dtype == torch.float64 and error(exact.float(), want) < 1e-7
    half = [None if t is None else t.half() for t in operands(block)]
    with pytest.warns(RuntimeWarning, match="float16"):
        small = torch.ops.moec.experts_on_cpu(x.half(), ids, weights, *half, **rule)
    assert small.dtype == torch.float16 and error(small.float(), want) < 0.01


@pytest.mark.usefixtures("threads")
def test_where_pytorch_has_no_openmp_one_thread_works_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    block, given = mixture(), (tokens(4, hidden=32), *choice(4, experts=6, top_k=2))
    want = run(block, *given)
    monkeypatch.setattr(team, "_of_openmp", lambda: None)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(block, *given), want)
    torch.set_num_threads(2)
    with pytest.warns(RuntimeWarning, match="one thread: this PyTorch is not built with OpenMP"):
        assert torch.equal(run(block, *given), want)


FORKED = """
import os, signal, sys, warnings, torch, moec.dialect
torch.set_num_threads(2)
x, ids, weights = torch.randn(40, 32), torch.randint(0, 6, (40, 2)), torch.rand(40, 2)
call = lambda: torch.ops.moec.experts_on_cpu(x, ids, weights, *matrices)
matrices = torch.randn(6, 512, 32), torch.randn(6, 32, 256)
want = call()
if not os.fork():
    signal.alarm(30)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        same = torch.equal(call(), want)
    os._exit(0 if same and "forked" in str(said[0].message) else 3)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_fork_after_a_call_does_not_hang() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_refusals() -> None:
    block, x, (ids, weights) = mixture(), tokens(4, hidden=32), choice(4, experts=6, top_k=2)
    w_in, w_out, _, _ = operands(block)
    assert w_in is not None and w_out is not None
    cases = {
        "ids reach from 0 to 6, experts from 0 to 5": (x, torch.tensor([[0, 6]] * 4), weights, w_in, w_out),
        "w_in is": (x, ids, weights, w_in[:, :-1], w_out),
        "w_out is": (x, ids, weights, w_in, w_out[:5]),
        "don't fit": (x[:3], ids, weights, w_in, w_out),
        "nothing to multiply": (x[:, :0], ids, weights, w_in[..., :0], w_out),
    }
    for text, given in cases.items():
        with pytest.raises(MoecError, match=text) as refused:
            torch.ops.moec.experts_on_cpu(*given)
        assert refused.value.code == "M212"


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEC_CPU_KERNELS", "/nowhere/libmoec_cpu.so")
    with pytest.raises(MoecError, match="there is no such file") as refused:
        run(mixture(), tokens(4, hidden=32), *choice(4, experts=6, top_k=2))
    assert refused.value.code == "M301"
