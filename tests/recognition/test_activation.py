"""Activations are told apart by their values. Through which graphs they are found is tests/recognition/test_ffn.py's
subject."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.dialect import Activation
from moec.frontend.export import capture
from moec.recognition.activation import candidates, identify, is_split


class Model(nn.Module):
    def __init__(self, rule: Activation) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, h: Tensor) -> Tensor:
        return self.rule(h)


def name_of(rule: Activation) -> tuple[Activation, bool] | str:
    width = 6 * rule.rows_per_neuron
    program = capture(Model(rule), {"h": torch.randn(5, width)}, {"h": ("rows", None)})
    source, *region, output = program.graph.nodes
    return identify(program, region, [source], [width], output.args[0][0], 6)


@pytest.mark.parametrize("rule", candidates(True) + candidates(False), ids=str)
def test_each_candidate_is_told_from_all_others(rule: Activation) -> None:
    assert name_of(rule) == (rule, False)


@pytest.mark.parametrize(
    "rule",
    [Activation(beta=0.01), Activation(alpha=1.7), Activation(limit=9.0), Activation("silu", False, alpha=1.1)],
    ids=str,
)
def test_what_is_only_nearly_one_is_none(rule: Activation) -> None:
    assert "is none of" in name_of(rule)


def test_a_cut_of_another_dimension_is_no_split() -> None:
    class Cut(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.chunk(2, dim=-1)[0] + h.chunk(2, dim=1)[0].mean()

    program = capture(Cut(), {"h": torch.randn(3, 4, 6)})
    last, middle = program.nodes(torch.ops.aten.chunk.default)
    assert is_split(last) and not is_split(middle)
