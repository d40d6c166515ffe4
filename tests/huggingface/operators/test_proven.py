"""Operators take a place where they are shown to be the same, and a difference is seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.huggingface.operators.proven import (
    TOLERANCE,
    apart,
    modules_like,
    one_of_each,
    require_choice,
    require_proven,
    require_same,
    small_instance,
)


class Block(nn.Module):
    """A module that is made of a config."""

    def __init__(self, config: SimpleNamespace, number: int) -> None:
        super().__init__()
        self.config, self.number, self.layer = config, number, nn.Linear(config.size, config.size)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.layer(hidden_states) * mask
        return result


def block() -> Block:
    return Block(SimpleNamespace(size=8), 0)


def test_a_module_is_told_by_its_parts_and_its_call() -> None:
    model = nn.Sequential(nn.ReLU(), block())
    assert modules_like(model, ("layer", "number"), ["hidden_states", "mask"]) == {"1": model[1]}
    assert modules_like(model, ("layer", "number")) == {"1": model[1]} and not modules_like(model, ("other",))
    assert not modules_like(model, ("layer", "other"), ["hidden_states", "mask"])
    assert not modules_like(model, ("layer",), ["hidden_states"])


def test_modules_of_one_class_and_config_are_shown_once() -> None:
    class Other(Block):
        pass

    one, two = SimpleNamespace(size=8), SimpleNamespace(size=8)
    found = {"a": Block(one, 0), "b": Block(one, 1), "c": Other(one, 2), "d": Block(two, 3), "e": Block(one, 4)}
    assert list(one_of_each(found)) == ["a", "c", "d"]


def test_a_small_instance_is_drawn_and_the_config_stays() -> None:
    config = SimpleNamespace(size=8)
    one, again = (small_instance(block(), config, {"size": 3}, torch.Generator().manual_seed(0), 5) for _ in range(2))
    assert config.size == 8 and one.layer.weight.shape == (3, 3) and (one.number, one.training) == (5, False)
    assert torch.equal(one.layer.weight, again.layer.weight) and float(one.layer.weight.std()) > 0.05


def test_a_difference_is_in_spreads_and_of_another_shape_infinite() -> None:
    wanted = torch.tensor([0.0, 2.0])
    assert apart(wanted + 0.5, wanted) == 0.5 and apart(wanted[:1], wanted) == apart(None, wanted) == float("inf")
    assert apart(wanted[:0], wanted[:0]) == 0.0


@pytest.mark.parametrize("difference", [2 * TOLERANCE, float("inf"), float("nan")])
def test_what_is_not_the_same_is_refused(difference: float) -> None:
    require_same(TOLERANCE, "a.b", block())
    with pytest.raises(MoecError, match="Block does not compute what its parts suggest") as error:
        require_same(difference, "a.b", block())
    assert error.value.code == "M206" and error.value.where == "a.b" and error.value.fix


def test_choices_and_functions_are_refused_by_their_names() -> None:
    require_choice(True, "a", block(), "tokens")
    with pytest.raises(MoecError, match="does not choose the tokens"):
        require_choice(False, "a", block(), "tokens")
    functions = {"scan": block().forward}
    require_proven("a", block(), functions, lambda _: 0.0)
    with pytest.raises(MoecError, match="something else than its forward suggests"):
        require_proven("a", block(), functions, lambda _: 1.0)
