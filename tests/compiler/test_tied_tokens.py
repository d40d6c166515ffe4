"""Equal tokens tie where experts choose among tokens; that is said where an engine differs for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.compiler.tied_tokens import tied_tokens
from moec.frontend.module_source import ModuleSource
from tests.mixtures import VOCABULARY, Loop, mixture, source_of


class Depths(nn.Module):
    """A mixture of depths: of each text, the two tokens with the largest scores go through a network."""

    def __init__(self, places: bool, left_out: float | None = None, coarse: bool = False) -> None:
        """`left_out`: the score of most tokens, as of padding. `coarse`: scores are 1 or -1."""
        super().__init__()
        self.left_out, self.coarse = left_out, coarse
        self.embed, self.places = nn.Embedding(VOCABULARY, 16), nn.Embedding(64, 16) if places else None
        self.score, self.ffn = nn.Linear(16, 1), nn.Linear(16, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids % 5)  # so that tokens stand twice
        if self.places is not None:
            x = x + self.places(torch.arange(input_ids.shape[1]).clamp(max=63))
        scores = self.score(x).squeeze(-1)
        if self.left_out is not None:
            scores = scores.masked_fill(input_ids % 5 > 0, self.left_out)
        scores, ids = (scores.sign() if self.coarse else scores).topk(torch.sym_min(2, input_ids.shape[1]), -1)
        index = ids[..., None].expand(-1, -1, 16)
        return x.scatter_add(1, index, self.ffn(x.gather(1, index)) * scores[..., None])


def source(places: bool, **how: Any) -> ModuleSource:
    torch.manual_seed(0)
    return source_of(Depths(places, **how))


def test_tokens_that_stand_twice_tie_and_those_with_places_do_not() -> None:
    for places in (False, True):
        found = source(places)
        said = tied_tokens(found.capture(), found)
        assert ("which of them is taken is nobody's choice" in said and "top-k topk" in said) != places


def test_a_choice_of_experts_is_none_of_tokens() -> None:
    found = source_of(mixture(Loop))
    assert tied_tokens(found.capture(), found) == ""


@pytest.mark.parametrize(
    "how", [{"left_out": float("-inf")}, {"left_out": torch.finfo(torch.float32).min}, {"coarse": True}], ids=str
)
def test_padding_and_unequal_tokens_that_tie_are_not_called_equal(how: dict[str, Any]) -> None:
    found = source(True, **how)
    assert tied_tokens(found.capture(), found) == ""
