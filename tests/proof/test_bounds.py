"""Bounds are found in a config, in tables and in numbers of the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.program.conditions import Condition
from moec.proof.bounds import Bound, find_bounds, table_lengths
from moec.proof.sizes import plan_sizes
from tests.moe_module import source_of
from tests.zoo import captured, source


class Local(nn.Module):
    """Sees 20 tokens back, has 64 positions, and knows a special token, 33."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 8), nn.Embedding(64, 8)
        self.mask, self.cut = nn.Buffer(torch.ones(48, 48).tril()), cut

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        place = torch.arange(length)
        seen = (place[:, None] - place[None] < 20) & (place[:, None] >= place[None])
        if self.cut:
            seen = seen & (self.mask[:length, :length] > 0)
        x = self.tokens(input_ids) + self.places(place) + (input_ids == 33)[..., None]
        return (x @ x.transpose(1, 2)).masked_fill(~seen, -9.0).softmax(-1) @ x


def test_numbers_and_tables_of_a_graph_are_bounds_and_those_of_tokens_are_not() -> None:
    model = source_of(Local(), 50)
    found = find_bounds(model, model.capture())
    assert found == [Bound(20, "20 in the graph"), Bound(64, "a table of 64 positions")]


def test_a_mask_that_is_cut_to_the_text_is_a_table() -> None:
    model = source_of(Local(cut=True), 50)
    assert table_lengths(model, model.capture()) == [48, 64]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mistral", [5, 256]),
        ("gpt_oss", [5, 16, 256]),
        ("llama4", [4, 7, 256]),
        ("bert", [256]),
        ("qwen3_next", [64, 256]),
    ],
)
def test_the_configs_lengths_are_bounds(name: str, sizes: list[int]) -> None:
    assert [b.size for b in find_bounds(source(name), captured(name))] == sizes


def test_a_table_of_positions_is_found_without_a_config() -> None:
    assert table_lengths(source("gpt2"), captured("gpt2")) == [256] == table_lengths(source("bert"), captured("bert"))


def test_conditions_are_bounds_of_their_dimension() -> None:
    model = source_of(Local(), 50)
    program = model.capture()
    program.conditions = (Condition("sequence <= 41"), Condition("batch <= 6"))
    found = find_bounds(model, program)
    assert (
        Bound(41, "a condition on sequence", "sequence") in found and Bound(6, "a condition on batch", "batch") in found
    )
    far = plan_sizes(model, program).far
    assert [s["batch"] for s in far[:2]] == [6, 7] and {s["sequence"] for s in far} >= {20, 21, 41, 42, 64, 65}


def test_of_a_condition_on_a_sum_the_largest_size_counts() -> None:
    program = captured("mistral")
    program.conditions = (Condition("past_sequence + sequence <= 99"), Condition("sequence >= 7"))
    sizes = [(b.size, b.dimension) for b in find_bounds(source("mistral"), program) if b.dimension]
    assert [size for size, _ in sizes] == [6, 99] and sizes[0][1] == "sequence"
