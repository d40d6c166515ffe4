"""Texts of engines in parts: where they end, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import moec
from moec import MoecError
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.parts import respond
from tests.encoder_decoders import padded


@pytest.fixture(scope="module")
def engine(translator_engine: Path) -> EncoderDecoderEngine:
    found = moec.load(translator_engine)
    assert isinstance(found, EncoderDecoderEngine)
    return found


def _written(engine: EncoderDecoderEngine, given: dict[str, Tensor], **options: object) -> list[list[int]]:
    start = torch.full((len(given["input_ids"]), 1), 2)
    return torch.stack(list(respond(engine, given, start, max_tokens=8, **options)), 1).tolist()  # type: ignore[arg-type]


def test_a_finished_row_gets_the_filler_and_the_context_ends_a_text(engine: EncoderDecoderEngine) -> None:
    free = _written(engine, padded())
    ended = _written(engine, padded(), eos=[free[0][1]], filler=1)
    place = free[0].index(free[0][1])
    assert ended[0][: place + 1] == free[0][: place + 1] and set(ended[0][place + 1 :]) <= {1}
    assert len(_written(engine, padded(), context=4)[0]) == 3


def test_no_tokens_and_no_room_are_refused(engine: EncoderDecoderEngine) -> None:
    for options, code in (({"max_tokens": 0}, "M201"), ({"context": 1}, "M211")):
        with pytest.raises(MoecError) as error:
            respond(engine, padded(), torch.full((3, 1), 2), **options)
        assert error.value.code == code
