"""A module's forward finds other functions while it runs; its file keeps its own."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import Tensor, nn, ones

from moec.huggingface.operators.functions_of_file import Function, functions_read, let_call


def doubled(x: Tensor, by: int = 2) -> Tensor:
    return x * by


class Doubling(nn.Module):
    def forward(self, x: Tensor, fails: bool = False) -> Tensor:
        if fails:
            raise ValueError("as told")
        return doubled(x)


def test_a_function_is_found_by_its_parameters() -> None:
    assert functions_read(Doubling(), lambda parameters: parameters == ["x", "by"]) == {"doubled": doubled}
    assert not functions_read(Doubling(), lambda parameters: parameters == ["by", "x"])
    assert not functions_read(nn.Identity(), lambda parameters: True)


def test_another_is_called_in_its_place_and_gone_after_the_call() -> None:
    module, own, told = Doubling(), doubled, list[dict[str, Any]]()

    def other(function: Function, arguments: dict[str, Any]) -> Function:
        told.append(arguments)
        return lambda x: function(x, by=7)

    let_call(module, ["doubled"], other)
    assert module(ones(1), fails=False).item() == 7 and told == [{"fails": False}]
    assert sys.modules[__name__].doubled is own and Doubling()(ones(1)).item() == 2
    with pytest.raises(ValueError, match="as told"):
        module(ones(1), fails=True)
    assert sys.modules[__name__].doubled is own
