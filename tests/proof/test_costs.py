"""Costs are what products take, by the sizes of the inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moec.frontend.export import capture
from moec.proof.costs import Cost, Costs
from tests.moe_module import HIDDEN, MoeModel, source_of
from tests.zoo import captured


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(40, HIDDEN), nn.Linear(HIDDEN, 48)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.up(self.table(input_ids))


def test_a_product_costs_two_operations_a_weight_and_token() -> None:
    costs = Costs(source_of(Dense(), 40).capture())
    assert costs.of({"batch": 2, "sequence": 5}).flops == 2 * 10 * HIDDEN * 48
    assert costs.of({"batch": 2, "sequence": 5}).bytes >= 10 * 48 * 4


def test_attention_grows_with_the_square_of_a_text_and_not_with_a_cache() -> None:
    costs = Costs(captured("llama"))

    def flops(new: int, past: int) -> float:
        return costs.of({"batch": 1, "sequence": new, "past_sequence": past}).flops

    one = flops(1, 0)
    assert flops(1024, 0) > 1.5 * 1024 * one and flops(1, 1023) < 20 * one
    assert flops(1, 2000) - flops(1, 1000) == flops(1, 3000) - flops(1, 2000)  # linear in the cache


def test_only_chosen_experts_count() -> None:
    costs = Costs(source_of(MoeModel()).capture())
    one, two = (costs.of({"batch": 1, "sequence": n}).flops for n in (1, 2))
    assert two == 2 * one > 0


class Scans(nn.Module):
    def forward(self, x: Tensor, b: Tensor, state: Tensor) -> Tensor:
        found: Tensor = torch.ops.moec.selective_scan(x, x.abs(), -torch.ones(8, 3), b, b, state)[0]
        return found


def test_a_scan_grows_with_its_tokens_and_its_state() -> None:
    given = {"x": torch.randn(2, 5, 8), "b": torch.randn(2, 5, 3), "state": torch.zeros(2, 8, 3)}
    shapes = {"x": ("batch", "sequence", 8), "b": ("batch", "sequence", 3), "state": ("batch", 8, 3)}
    costs = Costs(capture(Scans(), given, shapes))
    assert costs.of({"batch": 3, "sequence": 7}).flops == 6 * 3 * 7 * 8 * 3


def test_a_cost_can_be_read() -> None:
    assert str(Cost(2.5e11, 3 * 2**30)) == "2.5e+11 FLOPs and 3.0 GiB"
