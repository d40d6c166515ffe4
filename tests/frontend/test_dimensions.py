"""Dynamic dimensions get the bounds that torch.export asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError, UserErrorType

from moec.frontend.dimensions import are_least_sizes, dynamic_shapes, enlarged, suggested_bounds
from moec.frontend.export import capture
from moec.program.conditions import Condition

TEXT = """Constraints violated (frames)! For more information, run with TORCH_LOGS="+dynamic".
  - Not all values of frames = L['x'].size()[1] in the specified range satisfy the generated guard 7 <= frames
Suggested fixes:
  frames = Dim('frames', min=7, max=72)
  lines = rows
"""


def test_bounds_and_equal_dimensions_are_read_from_the_message() -> None:
    found = suggested_bounds(UserError(UserErrorType.CONSTRAINT_VIOLATION, TEXT))
    assert set(found) == {"frames", "lines"} and found["frames"]["min"] == "7" and found["lines"]["other"] == "rows"
    assert suggested_bounds(RuntimeError(TEXT)) == {}, "only torch's own message is read"


def test_dimensions_take_them() -> None:
    found = suggested_bounds(UserError(UserErrorType.CONSTRAINT_VIOLATION, TEXT))
    dynamic = {"x": ("rows", "frames", None), "y": ("lines", "a + b")}
    shapes = dynamic_shapes(["x", "y", "z"], dynamic, found)
    assert (shapes["x"][1].min, shapes["x"][1].max) == (7, 72) and set(shapes["x"]) == {0, 1} and shapes["z"] == {}
    assert shapes["y"][0].__name__ == shapes["x"][0].__name__ == "rows"
    assert shapes["y"][1].min == 4, "2 of each part of a sum"


class Windowed(nn.Module):
    """Both bounds at once, found one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.unfold(1, 6, 1).sum(-1)
        return y if y.shape[1] < 40 else y * 2


def test_minimum_and_maximum_of_one_capture() -> None:
    program = capture(Windowed(), {"x": torch.randn(3, 20)}, {"x": ("batch", "length")})
    assert [str(c) for c in program.conditions] == ["length <= 44", "length >= 6"]


def test_samples_grow_along_what_is_dynamic_and_sums_stay_sums() -> None:
    samples = {"x": torch.ones(2, 3, 4), "mask": torch.ones(2, 8), "past": torch.ones(2, 5), "number": torch.ones(())}
    dynamic = {"x": ("batch", "new"), "mask": ("batch", "past + new"), "past": ("batch", "past")}
    found = [{n: tuple(t.shape) for n, t in larger.items()} for larger in enlarged(samples, dynamic)]
    assert found[0] == {"x": (16, 24, 4), "mask": (16, 64), "past": (16, 40), "number": ()}
    assert found[1]["x"] == (128, 192, 4) and len(found) == 2
    assert list(enlarged(samples, {})) == [] == list(enlarged({"x": torch.ones(2**18)}, {"x": ("n",)}))[1:]


def test_a_larger_sample_must_not_take_another_branch() -> None:
    least, multiple = Condition("frames >= 7"), Condition("frames % 16 == 0")
    assert are_least_sizes([least], {"frames": 3}) and are_least_sizes([least, multiple], {"frames": 32})
    assert not are_least_sizes([least, multiple], {"frames": 11}) and not are_least_sizes([multiple], {"frames": 3})
