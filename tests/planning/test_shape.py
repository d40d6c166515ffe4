"""The arithmetic of a model on paper."""

from __future__ import annotations

from moec.planning.shape import Mixture, Shape, State, Tensor


def test_an_idle_expert_is_not_active() -> None:
    mixture = Mixture("layer", 8, 2, 800, 4, 3)
    table, experts = Tensor("table", (10, 4), "input embedding"), Tensor("experts", (8, 100), "routed experts")
    shape = Shape("M", (table, experts), (mixture,), (), 4, 1, 10)
    assert (shape.total, shape.active, shape.active_without_embedding) == (840, 240, 200)
    assert shape.parts()["routed experts"] == 800 and shape.parts()["norm"] == 0


def test_a_window_ends_the_growth_of_a_state() -> None:
    window, recurrent = State("keys and values", 10, window=5), State("recurrent", 0, 7)
    assert [window.elements(n) for n in (1, 5, 6, 100)] == [10, 50, 50, 50]
    assert recurrent.elements(1) == recurrent.elements(100) == 7
