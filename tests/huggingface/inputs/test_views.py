"""The size that `view` is to find is a plain number where it is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.execution.engine import EagerEngine
from moec.frontend.export import capture
from moec.huggingface.inputs.views import PlainViews, plain
from tests.reported import CASES


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ((2, 9, 32), (2, 9, -1, 8), (2, 9, 4, 8)),
        ((2, 9, 32), (-1, 8), (72, 8)),
        ((2, 9, 32), (2, -1), (2, 288)),
        ((2, 9, 32), (2, 9, 4, 8), (2, 9, 4, 8)),
        ((6, 4), (3, -1), (3, 8)),
        ((2, 0), (2, -1, 0), (2, -1, 0)),
    ],
)
def test_sizes(old: tuple[int, ...], new: tuple[int, ...], found: tuple[int, ...]) -> None:
    assert plain(old, new) == found


def test_other_uses_of_view_stay_what_they_are() -> None:
    x = torch.arange(6.0)
    with PlainViews():
        assert x.view(torch.int32).dtype == torch.int32 and x.view_as(x) is not None
        assert x.view((2, -1)).shape == x.reshape([2, -1]).shape == x.view(2, 3).shape == (2, 3)


class Heads(nn.Module):
    """Rows of an image's patches, cut into heads."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, :, ::3, ::3].flatten(2).transpose(1, 2)
        return rows.view(*rows.shape[:-1], -1, 2).transpose(1, 2)


def test_heads_are_counted_whatever_an_image_measures() -> None:
    class Plainly(Heads):
        def forward(self, x: Tensor) -> Tensor:
            with PlainViews():
                return super().forward(x)

    dynamic = {"x": ("batch", None, "height", "width")}
    program = capture(Plainly(), {"x": torch.randn(3, 8, 25, 37)}, dynamic)
    assert program.output_signature()[0].shape[1] == 4
    x = torch.randn(2, 8, 13, 41)
    assert torch.equal(program.run(x=x)["output"], Heads()(x))


def test_a_detector_of_images_of_any_size_has_a_signature() -> None:
    from moec.huggingface.source import HuggingFaceSource

    source = HuggingFaceSource.from_model(CASES["detr"].model())
    assert source.inputs[0].shape == ("batch", 3, "height", "width")
    assert "pixel_mask" in {x.name for x in source.account().left_out}


class Windows(nn.Module):
    """The last four tokens of each, the newest first (Inkling 2)."""

    def forward(self, x: Tensor) -> Tensor:
        with PlainViews():
            return nn.functional.pad(x, (3, 0)).unfold(-1, 4, 1).flip(-1).transpose(1, 2)


def test_windows_turned_round_hold_for_any_length() -> None:
    x = torch.randn(3, 5, 11)
    program = capture(Windows(), {"x": x}, {"x": ("batch", None, "sequence")})
    assert not program.conditions
    one = EagerEngine(program)(x=x[:2, :, :1])
    assert torch.equal(next(iter(one.values())), Windows()(x[:2, :, :1]))
