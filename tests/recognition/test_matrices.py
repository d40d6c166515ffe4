"""The matrices that products read are found, each with the name that the model gives it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.frontend.module_source import ModuleSource
from moec.recognition.matrices import constant_nodes, find_matrices
from tests import moe_module
from tests.mixtures import EXPERTS, Gathered, Loop, OneAfterAnother, Stacked, mixture, source_of


def names(model: nn.Module) -> list[str]:
    return [name for matrix in find_matrices(source_of(model).capture()) for name in matrix.names]


def test_tables_and_vectors_are_no_matrices() -> None:
    found = names(mixture(Loop))
    assert {"router.weight", "head.weight", "experts.0.up.weight", "experts.3.down.weight"} <= set(found)
    assert not any("bias" in name or "embedding" in name for name in found) and len(found) == 2 + 2 * EXPERTS


@pytest.mark.parametrize("way", [Stacked, Gathered, OneAfterAnother])
def test_the_parts_of_a_stack_have_names_of_their_own(way: type) -> None:
    assert {f"{name}.{e}" for name in ("up", "down") for e in range(EXPERTS)} <= set(names(mixture(way)))


def test_the_dialects_operators_read_stacks() -> None:
    found = find_matrices(moe_module.source_of(moe_module.MoeModel()).capture())
    assert [m.name for m in found if m.parts] == ["blocks.0.w_in", "blocks.0.w_out", "blocks.1.w_in", "blocks.1.w_out"]


class Expressions(nn.Module):
    """Weights that are joined, cast and turned before a product reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5, 8))
        self.wide = nn.Parameter(torch.randn(8, 4, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.stack([self.a, self.b]).transpose(1, 2)
        return torch.matmul(x, both), torch.einsum("btd,dhk->bthk", torch.cat([x, x]), self.wide)


def test_an_expression_of_weights_is_one_matrix() -> None:
    x = torch.randn(2, 3, 8)
    program = ModuleSource(Expressions(), {"x": x}, {"x": (None, "length", None)}).capture()
    found = {m.name: m for m in find_matrices(program)}
    assert set(found) == {"a", "wide"} and found["a"].node in constant_nodes(program)
    assert len(found["a"].parts) == 2, "the products take them apart"
    assert not found["wide"].parts, "its leading dimension is summed over"
