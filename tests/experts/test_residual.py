"""Where a block joins the residual stream: behind shared experts, and at the end of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import moec
from moec.experts.residual import residual_sum
from moec.recognition.ffn import find_ffns
from tests import zoo


def test_it_is_the_sum_that_the_next_layer_reads() -> None:
    for ffn in find_ffns(zoo.captured("llama", cache=False))[0]:
        found = residual_sum(ffn.output)
        assert found is not None and found.target is torch.ops.aten.add.Tensor and ffn.output in found.all_input_nodes


class Shared(nn.Module):
    """Two networks, added to each other before they join the stream, and one that joins nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.parts
        y = x + (a(x) + b(x))
        return c(y + d(y * 2))


def test_networks_that_are_added_to_each_other_join_together() -> None:
    program = moec.capture(Shared(), {"x": torch.randn(3, 8)}, {"x": ("rows", None)})
    first, second, third, last = (n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default)
    together = residual_sum(first)
    assert together is residual_sum(second) and together is not None and len(together.users) == 2
    assert residual_sum(third) not in (None, together) and residual_sum(last) is None
