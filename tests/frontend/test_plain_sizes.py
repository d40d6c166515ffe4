"""Symbolic sizes survive JSON: the same expression, range and own size; what depends on data is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from moec.frontend.plain_sizes import NotPlainError, Sizes, SizesOf


class Pairs(nn.Module):
    """Sizes of several kinds: a sum, a quotient, a remainder."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([x, y], 1)
        return both[:, : both.shape[1] // 2] if both.shape[1] % 2 == 0 else both[:, : 3 * x.shape[1] - 1]


@pytest.fixture(scope="module")
def sizes() -> list[Any]:
    """The sizes in a graph, a comparison of two, and their quotient."""
    named = {"x": {0: torch.export.Dim("b"), 1: torch.export.Dim("s", min=3, max=100)}, "y": {1: torch.export.Dim("t")}}
    named["y"][0] = named["x"][0]
    found = torch.export.export(Pairs(), (torch.ones(3, 11), torch.ones(3, 7)), dynamic_shapes=named, strict=False)
    values = [n.meta.get("val") for n in found.graph.nodes]
    shown = [size for v in values if isinstance(v, Tensor) for size in v.shape if isinstance(size, torch.SymInt)]
    return [*shown, torch.sym_float(shown[1]), shown[0] < shown[1], torch.sym_max(shown[0], shown[1])]


def test_they_come_back(sizes: list[Any]) -> None:
    writer = Sizes()
    plain = json.loads(json.dumps([writer.plain(size) for size in sizes]))
    reader = SizesOf(json.loads(json.dumps(writer.symbols())))
    again = [reader.value(part) for part in plain]
    assert [type(a) for a in again] == [type(s) for s in sizes] and any(isinstance(s, torch.SymBool) for s in sizes)
    assert [a.node.expr for a in again] == [s.node.expr for s in sizes]
    for symbol in {symbol for size in sizes for symbol in size.node.expr.free_symbols}:
        old, new = sizes[0].node.shape_env, reader.environment
        assert old.var_to_range[symbol] == new.var_to_range[symbol]
        assert old.backed_var_to_val[symbol] == new.backed_var_to_val[symbol]
    whole = [(a, s) for a, s in zip(again, sizes, strict=True) if isinstance(s, torch.SymInt)]
    assert [a.node.hint for a, _ in whole] == [s.node.hint for _, s in whole]  # asking for an int would fix it


def test_equal_ones_are_one_object(sizes: list[Any]) -> None:
    writer = Sizes()
    plain = writer.plain(sizes[0])
    reader = SizesOf(writer.symbols())
    assert reader.value(plain) is reader.value(json.loads(json.dumps(plain)))


def test_a_size_that_depends_on_data_is_refused() -> None:
    with pytest.raises(NotPlainError, match="depends on data"):
        Sizes().plain(ShapeEnv().create_unbacked_symint())


def test_a_function_that_is_not_known_is_refused(sizes: list[Any]) -> None:
    node = sizes[0].node
    odd = node.shape_env.create_symintnode(sympy.binomial(node.expr, 2), hint=4)
    with pytest.raises(NotPlainError, match="binomial"):
        Sizes().plain(odd)
    with pytest.raises(KeyError):
        SizesOf({}).value(["int", ["binomial", 5, 2]])
