"""A model that changes itself while it runs is found, and says of every input what one made anew says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.anew import CalledAnew, copied, state_of
from moec.frontend.module_source import ModuleSource

Change = Callable[[Any, Tensor], None]


class Remembers(nn.Module):
    """A factor that something of an earlier call decides."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change, self.mode, self.seen, self.memo, self.box = change, "short", [0], {"most": 0}, Box()
        self.rows = np.zeros(2)
        self.register_buffer("table", torch.ones(3))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        factor = (
            len(self.seen)
            + self.memo["most"]
            + self.box.most
            + float(self.table.sum())
            + float(self.rows.sum())
            + (self.mode == "long")
        )
        self.change(self, x)
        return {"y": x * factor * self.scale}


class Box:
    def __init__(self) -> None:
        self.most = 0


def attribute(m: Any, x: Tensor) -> None:
    m.mode = "long" if x.shape[1] > 5 else m.mode


def buffer_in_place(m: Any, x: Tensor) -> None:
    m.table.add_(x.shape[1])


def buffer_replaced(m: Any, x: Tensor) -> None:
    m.register_buffer("table", torch.full((3,), float(x.shape[1])), persistent=False)


def a_list(m: Any, x: Tensor) -> None:
    m.seen.append(1)


def a_mapping(m: Any, x: Tensor) -> None:
    m.memo["most"] = max(m.memo["most"], x.shape[1])


def an_object(m: Any, x: Tensor) -> None:
    m.box.most += 1


def an_array(m: Any, x: Tensor) -> None:
    m.rows[0] += x.shape[1]


def parameter(m: Any, x: Tensor) -> None:
    m.scale.data.mul_(2)


CHANGES = [attribute, buffer_in_place, buffer_replaced, a_list, a_mapping, an_object, an_array, parameter]
INPUTS = [torch.ones(2, n) for n in (3, 9, 3, 7, 3)]


@pytest.mark.parametrize("change", CHANGES)
def test_equal_to_one_made_anew_in_every_order(change: Change) -> None:
    for inputs in (INPUTS, INPUTS[::-1]):
        model = Remembers(change).eval()
        source = ModuleSource(model, {"x": INPUTS[1]}, {"x": ("batch", "length")})
        engine = source.reference()
        for x in inputs if change is not parameter else inputs[:1]:
            with torch.inference_mode():
                want = Remembers(change).eval()(x)["y"]
            assert torch.equal(engine(x=x)["y"], want)
        if change is not parameter:
            assert state_of(model) == state_of(Remembers(change).eval()), "the user's own is as it was"


@pytest.mark.parametrize("change", CHANGES)
def test_a_plain_model_remembers_and_is_found(change: Change) -> None:
    """The mutant: the same object called for every input, in two orders."""
    with torch.inference_mode():
        model = Remembers(change).eval()
        before = state_of(model)
        answers = [model(x)["y"] for x in INPUTS]
        assert state_of(model) != before
        assert not torch.equal(answers[0], answers[-1]), "the same input, first and last"


def nothing(m: Any, x: Tensor) -> None:
    m.mode = "short"


def test_one_that_stays_the_same_is_never_copied() -> None:
    model = Remembers(nothing).eval()
    call = CalledAnew(model, lambda m: m)
    assert torch.equal(call(x=INPUTS[0])["y"], model(INPUTS[0])["y"]) and not call.changes


def test_parameters_are_shared_and_buffers_are_not() -> None:
    model = Remembers(nothing)
    another = copied(model)
    assert isinstance(another, Remembers) and another.scale is model.scale and another.table is not model.table


def test_one_that_cannot_be_copied_is_refused_once_it_has_changed() -> None:
    model = Remembers(attribute).eval()
    model.lock = threading.Lock()
    call = CalledAnew(model, lambda m: m)
    call(x=INPUTS[0]), call(x=INPUTS[1])
    with pytest.raises(MoecError, match="changes itself") as caught:
        call(x=INPUTS[0])
    assert caught.value.code == "M206"


def test_timing_leaves_the_watching_out() -> None:
    engine = ModuleSource(Remembers(attribute), {"x": INPUTS[1]}, {"x": ("batch", "length")}).reference()
    engine.be_timed()
    engine(x=INPUTS[1])
    assert torch.equal(engine(x=INPUTS[0])["y"], INPUTS[0] * 5), "it is called as it is"
