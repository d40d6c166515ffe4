"""What carving a network costs is what it changes at the model's end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError
from moec.experts.carved_effect import _effects, cost_curves
from moec.experts.carving import Carving
from moec.program.program import Program
from moec.recognition.ffn import find_ffns
from tests import zoo
from tests.experts.test_carved_place import text

HOW = Carving(4, None, 2, "rows", "ridge", True, True, 0)


def test_curves_fall_to_nothing_and_are_kl_divergences_at_the_point_that_was_followed() -> None:
    program = zoo.captured("llama", cache=False)
    curves = cost_curves(program, find_ffns(program)[0], text(), HOW)
    for curve in curves:
        assert bool((curve[:-1] > 0).all()) and float(curve[-1]) == pytest.approx(0, abs=1e-9)
    other = cost_curves(program, find_ffns(program)[0], text(), replace(HOW, active=3))
    assert all(0.3 < float(a[0] / b[0]) < 3 for a, b in zip(curves, other, strict=True))  # one point says it all


class Aside(nn.Module):
    """Two equal networks, of which the second is hardly heard at the end.

    Args:
        name: of the output. last: what stands in its last column, where anything does.
    """

    def __init__(self, name: str = "vectors", last: float | None = None) -> None:
        super().__init__()
        self.name, self.last = name, last
        self.table = nn.Embedding(zoo.VOCAB, 8)
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*s) for _ in range(2)) for s in ((8, 16), (16, 8)))

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids)
        a, b = (self.downs[k](torch.relu(self.ups[k](x))) for k in range(2))
        y = x + a + 0.1 * b
        return {
            self.name: y if self.last is None else torch.cat([y[..., :-1], torch.full_like(x[..., :1], self.last)], -1)
        }


def captured(name: str = "vectors", last: float | None = None) -> Program:
    torch.manual_seed(0)
    model = Aside(name, last).eval()
    model.ups[1].load_state_dict(model.ups[0].state_dict())
    model.downs[1].load_state_dict(model.downs[0].state_dict())
    ids = torch.zeros(3, 7, dtype=torch.int64)
    return moec.capture(model, {"input_ids": ids}, {"input_ids": ("batch", "sequence")})


def test_what_is_hardly_heard_costs_little_and_outputs_other_than_logits_are_compared() -> None:
    program = captured()
    ids = torch.randint(0, zoo.VOCAB, (8, 32), generator=torch.Generator().manual_seed(0))
    loud, quiet = cost_curves(program, find_ffns(program)[0], [{"input_ids": ids}], HOW)
    assert float(quiet[1]) == pytest.approx(0.01 * float(loud[1]), rel=1e-3)
    assert float(quiet[1]) > 0


def test_a_token_that_is_ruled_out_hides_no_cost() -> None:
    ids = torch.randint(0, zoo.VOCAB, (8, 32), generator=torch.Generator().manual_seed(0))
    never, hardly = (
        cost_curves(program, find_ffns(program)[0], [{"input_ids": ids}], HOW)
        for program in (captured("logits", last) for last in (-math.inf, -1e4))
    )
    for curve, other in zip(never, hardly, strict=True):
        assert float(curve[1]) > 1e-6 and torch.allclose(curve, other, rtol=1e-4)


def test_an_end_that_is_not_finite_is_refused() -> None:
    """In 16 bits what is left out can be more than there are numbers for."""
    program = captured("logits")
    ffns, batch = find_ffns(program)[0], {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}
    slips = [torch.zeros(6, 8), torch.full((6, 8), math.nan)]
    with pytest.raises(MoecError, match="not finite") as caught:
        _effects(program, ffns, batch, slips)
    assert caught.value.code == "M203" and caught.value.where == ffns[1].path
