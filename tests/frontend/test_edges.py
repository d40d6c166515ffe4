"""Which conditions are torch's own: they fail only where a size is 0 or 1, and the graph runs there."""

from __future__ import annotations

import sympy
import torch
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv

from moec.execution.engine import EagerEngine
from moec.frontend.edges import default_sizes, settle, sizes_in, sizes_to_trace
from moec.frontend.export import capture
from moec.frontend.from_exported import from_exported
from moec.frontend.stored_program import retrace
from moec.program.conditions import Condition
from moec.program.program import Program


class Frames(nn.Module):
    """Two strided convolutions, and a product over what is left of the length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 4, 3, 2), nn.Conv1d(4, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x.transpose(1, 2))).transpose(1, 2)
        return y.reshape(-1, 4).unsqueeze(0).expand(2, -1, -1).reshape(2, x.shape[0], -1, 4)


def program() -> tuple[nn.Module, Program]:
    model = Frames().eval()
    return model, capture(model, {"x": torch.randn(3, 30, 4)}, {"x": ("batch", "frames", None)})


def test_a_minimum_is_kept_and_an_inner_size_of_one_is_not() -> None:
    model, captured = program()
    assert [str(c) for c in captured.conditions] == ["frames >= 7"]
    engine = EagerEngine(captured)
    for batch, frames in ((1, 7), (2, 7), (2, 10), (5, 11), (1, 99)):
        x = torch.randn(batch, frames, 4)
        assert torch.allclose(engine(x=x)["output"], model(x), atol=1e-6)


def test_where_torch_assumed_something_a_proof_looks() -> None:
    _, captured = program()
    length = sympy.Symbol("frames", integer=True)
    kept, edges = settle(captured, [Condition("(frames - 3) // 4 != 1")], [FloorDiv(length - 3, 4)])
    assert kept == () and edges == ({"batch": 3, "frames": 7},)


class Rest(nn.Module):
    """What is held already, then a product of the rest."""

    def forward(self, held: Tensor, x: Tensor) -> Tensor:
        return torch.cat([held, torch.sin(x[:, held.shape[1] :])], 1) * x


def test_a_size_between_two_others_is_as_small_as_one_of_them_lets_it() -> None:
    dynamic = {"held": ("batch", "past_sequence", None), "x": ("batch", "length", None)}
    captured = capture(Rest(), {"held": torch.randn(3, 5, 4), "x": torch.randn(3, 11, 4)}, dynamic)
    assert [str(c) for c in captured.conditions] == ["past_sequence <= length"], "not that length is 4 or more"
    for held, length in ((0, 1), (1, 1), (0, 2), (2, 3), (3, 3)):
        one, x = torch.randn(2, held, 4), torch.randn(2, length, 4)
        assert torch.equal(EagerEngine(captured)(held=one, x=x)["output"], Rest()(one, x))


def test_what_fails_elsewhere_too_is_the_models() -> None:
    _, captured = program()
    own = [Condition("frames % 2 == 0"), Condition("frames <= 900"), Condition("batch * frames <= 5000")]
    kept, edges = settle(captured, own, [sympy.Symbol("frames")])
    assert set(kept) == set(own) and edges == ()


def test_what_the_graph_cannot_run_is_kept() -> None:
    _, captured = program()
    assert (
        settle(captured, [Condition("frames >= 7")], [FloorDiv(sympy.Symbol("frames", integer=True) - 3, 4)])[0] != ()
    )


def test_what_follows_from_others_is_left_out() -> None:
    """torch says the second and third because it takes every size for 2 or more."""
    _, captured = program()
    window = Condition("past + sequence <= 16")
    assert settle(captured, [window, Condition("past <= 14"), Condition("sequence <= 14")], [])[0] == (window,)
    tighter = Condition("sequence <= 9")
    assert set(settle(captured, [window, tighter], [])[0]) == {window, tighter}


def test_sizes_to_trace_at_satisfy_the_conditions() -> None:
    _, captured = program()
    captured.conditions = (Condition("frames >= 50"),)
    assert default_sizes(captured) == {"batch": 3, "frames": 50}
    assert {str(s) for s in sizes_in(captured.graph)}


class Shrinks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::32] * 2


def test_a_graph_is_traced_again_where_no_size_in_it_is_one() -> None:
    program = capture(Shrinks(), {"x": torch.randn(3, 100)}, {"x": ("batch", "width")})
    assert default_sizes(program)["width"] <= 32 < sizes_to_trace(program)["width"]
    again = from_exported(retrace(program), dynamic={"x": ("batch", "width")}, inputs={"x": torch.empty(0)})
    x = torch.randn(2, 200)
    assert torch.equal(again.run(x=x)["output"], Shrinks()(x))
