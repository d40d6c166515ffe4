"""Both parts as one engine: texts beside each other, and what is refused."""

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


def test_two_texts_in_turns_do_not_meet(engine: EncoderDecoderEngine) -> None:
    other = {"input_ids": padded()["input_ids"].flip(1)}
    alone = [_written(engine, padded()), _written(engine, other)]
    start = torch.full((3, 1), 2)
    turns = zip(*(respond(engine, given, start, max_tokens=8) for given in (padded(), other)), strict=True)
    first, second = (torch.stack(tokens, 1).tolist() for tokens in zip(*turns, strict=True))
    assert [first, second] == alone and first != second


def test_padding_of_the_encoder_changes_no_text(engine: EncoderDecoderEngine) -> None:
    ids, mask = padded().values()
    together = _written(engine, padded())
    for row in range(3):
        alone = ids[row : row + 1, : int(mask[row].sum())]
        assert _written(engine, {"input_ids": alone})[0] == together[row]
    assert _written(engine, {"input_ids": ids}) != together, "without the mask it is another text"


def test_sizes_are_those_of_both_parts(engine: EncoderDecoderEngine) -> None:
    assert engine.holds({"batch": 2, "sequence": 72, "decoder_sequence": 3})
    assert not engine.holds({"batch": 2, "sequence": 73, "decoder_sequence": 3})


def test_more_held_states_than_there_are_is_refused(engine: EncoderDecoderEngine) -> None:
    given = {i.name: torch.zeros(i.resolve({"batch": 1, "sequence": 1, "encoder_sequence": 2, "past_sequence": 1,
             "past_encoder_sequence": 3}), dtype=i.dtype) for i in engine.decoder.inputs}  # fmt: skip
    with pytest.raises(MoecError) as error:
        engine.decoder(**given)
    assert error.value.code == "M213"


def test_the_decoder_alone_begins_a_text_without_caches(engine: EncoderDecoderEngine) -> None:
    text = engine.text(padded())
    ids = torch.full((3, 2), 2)
    alone = engine.decoder(input_ids=ids, encoder_hidden_states=text.states)
    ones = torch.ones(3, 7, dtype=torch.int64)
    want = engine.decoder(input_ids=ids, encoder_hidden_states=text.states, encoder_attention_mask=ones)
    assert torch.equal(alone["logits"], want["logits"])
