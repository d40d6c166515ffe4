"""Which implementation a tensor meets, by its device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import moec.dialect
from moec.dialect import Activation, Routing, experts_reference, moe_reference, route_reference
from moec.dialect.experts import dense_expert
from moec.kernels import dispatch
from tests.kernels.accuracy import Problem, distance, problem
from tests.kernels.conftest import Interpret

BLOCK = {"routing": Routing(2, scale=0.5), "rule": Activation("gelu", limit=1.0)}


@pytest.mark.parametrize("name", ["route", "experts", "moe"])
def test_cuda_has_an_implementation_of_its_own(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"moec::{name}", "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("moec::dequantize", "CUDA")


def test_nothing_loads_triton_before_it_is_needed() -> None:
    code = (
        "import sys, torch, moec.dialect, moec.kernels.dispatch, moec.kernels.launch\nassert 'triton' not in "
        "sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def arguments(given: Problem) -> tuple[torch.Tensor, ...]:
    router = torch.randn(6, given.x.shape[-1], generator=torch.Generator().manual_seed(1))
    return given.x, router, torch.linspace(-1, 1, 6), torch.linspace(1, -1, 6), *given.tensors()[3:]  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_block(interpret: Interpret, dtype: torch.dtype) -> None:
    given = arguments(problem(BLOCK["rule"], biases=True, dtype=dtype))
    rule = {**BLOCK["routing"].arguments(), **BLOCK["rule"].arguments()}
    got = interpret(dispatch.moe, *given, **rule, score_before=True)
    exact = moe_reference(*(t.double() for t in given), *BLOCK.values(), True)
    assert distance(got, exact) < (1e-6 if dtype == torch.float32 else 1e-14)
    assert distance(got, moe_reference(*(t.double() for t in given), *BLOCK.values(), False)) > 1e-2


def test_float64_takes_the_references() -> None:
    """On CUDA as anywhere: the kernels have no float64."""
    given = problem(dtype=torch.float64)
    want = experts_reference(given.x, given.ids, given.weights, dense_expert(*given.tensors()[3:], Activation()), 6)
    assert torch.equal(dispatch.experts(*given.tensors()), want)
    logits = torch.randn(5, 6, dtype=torch.float64)
    for got, wanted in zip(dispatch.route(logits, top_k=2), route_reference(logits, None, Routing(2)), strict=True):
        assert torch.equal(got, wanted) and got.dtype == wanted.dtype


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    given = problem()
    torch.testing.assert_close(dispatch.experts(*given.tensors()), moec.dialect.experts(*given.tensors()))
    torch.testing.assert_close(dispatch.route(given.x, top_k=2), moec.dialect.route(given.x, top_k=2))
    block = arguments(given)
    torch.testing.assert_close(dispatch.moe(*block, top_k=2), moec.dialect.moe(*block, top_k=2))
