"""The first wrong module is named, and not one that was only arranged differently."""

from __future__ import annotations

import torch

from moec.program.program import AppliedPass
from moec.proof.compare import Tolerance
from moec.proof.first_layer import first_layer


def test_what_was_arranged_away_is_passed_over_and_what_is_wrong_is_not() -> None:
    """A rotary table that the engine computes at half its width is nowhere to be found, but attention that uses it
    agrees."""
    right = {
        name: [torch.randn(4, 6)]
        for name in (
            "rotary",
            "layers.0.attn.q",
            "layers.0.attn",
            "layers.0.mlp.up",
            "layers.0.mlp",
            "layers.0",
            "layers.1.attn.q",
            "layers.1.attn",
        )
    }
    other = torch.randn(4, 6)
    halved = {**right, "rotary": [other]}
    assert first_layer(right, halved, Tolerance(1e-3))[0] == ""
    assert (
        first_layer(right, {**halved, "layers.1.attn.q": [other], "layers.1.attn": [other]}, Tolerance(1e-3))[0]
        == "layers.1.attn.q"
    )
    everything = {key: [other] for key in right}
    assert first_layer(right, everything, Tolerance(1e-3))[0] == "rotary", "nothing agrees after it"
    beside = {
        **right,
        "layers.0.attn": [other],
        "layers.0": [other],
        "layers.1.attn.q": [other],
        "layers.1.attn": [other],
    }
    assert first_layer(right, beside, Tolerance(1e-3))[0] == "layers.0.attn", (
        "a layer beside it that agrees says nothing of it"
    )


def test_a_layer_is_held_to_the_figure_that_the_tolerance_bounds() -> None:
    """The noise of right weights in 4 bits has single errors above the budget of its root mean square."""
    right = {"layers.0": [torch.randn(200, 64)], "layers.1": [torch.randn(200, 64)]}
    noisy = {path: [v + 0.3 * torch.randn(200, 64)] for path, (v,) in right.items()}
    budget = Tolerance.of_passes([AppliedPass("quantize", 1, "approximate", widths=(4,))])
    assert first_layer(right, noisy, budget)[0] == ""
    wrong = {**noisy, "layers.1": [noisy["layers.1"][0].roll(1, 0)]}
    path, deviation, _ = first_layer(right, wrong, budget)
    assert path == "layers.1" and deviation > 1.4  # the largest single error, as it is shown
    one = noisy["layers.1"][0].clone()
    one[3] = one[4]
    assert first_layer(right, {**noisy, "layers.1": [one]}, budget)[0] == "layers.1"
    assert first_layer(right, noisy, Tolerance(0.4))[0] == "layers.0"
