"""A small Llama that learned a small language: unlike a random model, it is sure of what it says."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from moec.huggingface.source import HuggingFaceSource
from moec.program.program import Program
from tests.zoo import VOCAB, build

_STEPS, _ROWS, _LENGTH, _NEXT = 120, 8, 24, 3


@cache
def model() -> Any:
    """Trained for a second or two on a language in which each token has three successors, one of them likelier."""
    generator = torch.Generator().manual_seed(0)
    successors = torch.randint(3, VOCAB, (VOCAB, _NEXT), generator=generator)
    found: Any = build("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    optimizer = torch.optim.AdamW(found.parameters(), lr=5e-3)
    for _ in range(_STEPS):
        ids = _text(successors, generator)
        loss = torch.nn.functional.cross_entropy(found(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found.eval()


def _text(successors: Tensor, generator: torch.Generator) -> Tensor:
    ids = torch.randint(3, VOCAB, (_ROWS, 1), generator=generator)
    share = torch.tensor([0.6, 0.3, 0.1])
    for _ in range(_LENGTH):
        chosen = torch.multinomial(share.expand(_ROWS, -1), 1, generator=generator)
        ids = torch.cat([ids, successors[ids[:, -1:]].squeeze(1).gather(1, chosen)], 1)
    return ids


@cache
def texts() -> tuple[Tensor, Tensor]:
    """Rows of tokens of that language that the model has not seen: to calibrate with, and to judge by."""
    successors = torch.randint(3, VOCAB, (VOCAB, _NEXT), generator=torch.Generator().manual_seed(0))
    drawn = [_text(successors, torch.Generator().manual_seed(seed)) for seed in range(7, 35)]
    return torch.cat(drawn[:20]), torch.cat(drawn[20:])


@cache
def source() -> HuggingFaceSource:
    """The model as a source; it is shared and not changed."""
    return HuggingFaceSource.from_model(model())


@cache
def captured() -> Program:
    """Its program; callers clone it."""
    return source().capture()
