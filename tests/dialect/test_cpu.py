"""The operator for CPUs is `moec::experts` under another name: its schema, shapes and derivative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import moec.dialect  # noqa: F401
from moec.kernels.cpu import pytorch


@pytest.fixture(autouse=True)
def _installed(cpu_kernels: Any) -> Iterator[None]:
    pytorch._library.cache_clear()
    yield
    pytorch._library.cache_clear()


def given() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.tensor([[0, 2], [2, 1], [0, 1], [1, 0], [2, 0]])
    shapes = ((5, 2), (3, 8, 6), (3, 6, 4), (3, 8), (3, 6))
    x, others = torch.randn(5, 6, generator=g), [torch.randn(*s, generator=g) for s in shapes]
    return [t.requires_grad_(t.is_floating_point()) for t in (x, ids, *others)]


def test_the_schema_is_that_of_experts() -> None:
    schemas = [str(getattr(torch.ops.moec, name).default._schema) for name in ("experts", "experts_on_cpu")]
    assert schemas[0].replace("moec::experts", "moec::experts_on_cpu") == schemas[1]


def test_it_is_an_operator_in_every_respect() -> None:
    found = torch.library.opcheck(torch.ops.moec.experts_on_cpu.default, given(), {"score_before": True})
    assert set(found.values()) == {"SUCCESS"}


def test_gradients_are_those_of_experts() -> None:
    def gradients(operator: Any) -> list[Tensor]:
        leaves = given()
        operator(*leaves, beta=0.5).square().sum().backward()
        return [t.grad for t in leaves if t.grad is not None]

    ours, theirs = gradients(torch.ops.moec.experts_on_cpu), gradients(torch.ops.moec.experts)
    assert len(ours) == 6
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[0], ours[0].roll(1, 0), rtol=1e-2)
