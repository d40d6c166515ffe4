"""Equal tokens tie where experts choose among tokens; that is said where an engine differs for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moec.compiler.tied_tokens import tied_tokens
from moec.frontend.module_source import ModuleSource
from tests.mixtures import VOCABULARY, Loop, mixture, source_of


class Depths(nn.Module):
    """A mixture of depths: of each text, the two tokens with the largest scores go through a network."""

    def __init__(self, places: bool) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(VOCABULARY, 16), nn.Embedding(64, 16) if places else None
        self.score, self.ffn = nn.Linear(16, 1), nn.Linear(16, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids % 5)  # so that tokens stand twice
        if self.places is not None:
            x = x + self.places(torch.arange(input_ids.shape[1]).clamp(max=63))
        scores, ids = self.score(x).squeeze(-1).topk(torch.sym_min(2, input_ids.shape[1]), -1)
        index = ids[..., None].expand(-1, -1, 16)
        return x.scatter_add(1, index, self.ffn(x.gather(1, index)) * scores[..., None])


def source(places: bool) -> ModuleSource:
    torch.manual_seed(0)
    return source_of(Depths(places))


def test_tokens_that_stand_twice_tie_and_those_with_places_do_not() -> None:
    for places in (False, True):
        found = source(places)
        said = tied_tokens(found.capture(), found)
        assert ("which of them is taken is nobody's choice" in said and "top-k topk" in said) != places


def test_a_choice_of_experts_is_none_of_tokens() -> None:
    found = source_of(mixture(Loop))
    assert tied_tokens(found.capture(), found) == ""
