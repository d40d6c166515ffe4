"""Two parts that do not fit each other are found out, though each is right alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import moec
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.engine import Engine
from moec.execution.parts import PartsEngine
from moec.frontend.source import Source
from moec.huggingface.states import encoder_decoder_call
from moec.proof.cache_consistency import SINGLY
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.proven_parts import ProvenParts
from moec.proof.encoder_decoder import prove_encoder_decoder
from moec.proof.joint import Joint
from moec.proof.verification import Verification
from tests.changed import Changed


@pytest.fixture(scope="module")
def source(translator: Path) -> Source:
    return moec.open_source(str(translator))


@pytest.fixture(scope="module")
def engine(translator_engine: Path) -> EncoderDecoderEngine:
    found = moec.load(translator_engine)
    assert isinstance(found, EncoderDecoderEngine)
    return found


@pytest.fixture(scope="module")
def alone(translator_engine: Path) -> dict[str, Verification]:
    return {part: moec.api.read_report(translator_engine / part).proof for part in ("encoder", "decoder")}


def _unmasked(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**given, "encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])}


def _mixed_up(given: dict[str, Tensor]) -> dict[str, Tensor]:
    key, value = (f"past_key_values.0.encoder.{kind}" for kind in ("key", "value"))
    return {**given, key: given[value], value: given[key]}


def _lost(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The cache of the decoder's own tokens, one token too short."""
    return {name: value[:, :, 1:] if ".decoder." in name else value for name, value in given.items()}


def test_the_right_parts_are_equal(
    source: Source, engine: EncoderDecoderEngine, alone: dict[str, Verification]
) -> None:
    proof = prove_encoder_decoder(Joint(source, alone, torch.float32, seed=3), engine)
    assert proof.ok and len(proof.checks) == 3


@pytest.mark.parametrize(
    ("change", "kind"), [(_unmasked, Outputs), (_mixed_up, CacheConsistency), (_lost, CacheConsistency)]
)
def test_wrong_ones_are_found(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    kind: type[Outputs | CacheConsistency],
    source: Source,
    engine: EncoderDecoderEngine,
    alone: dict[str, Verification],
) -> None:
    wrong = EncoderDecoderEngine(engine.encoder, Changed(engine.decoder, change))
    proof = prove_encoder_decoder(Joint(source, alone, torch.float32, seed=3), wrong)
    found = proof.find(kind)
    assert not proof.ok and found is not None and not found.ok
    assert proof.error is not None and proof.error.code == "M101"


def _louder(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Held keys of the decoder's own tokens that are larger than they should be."""
    return {n: v * 1.5 if n.endswith("decoder.key") else v for n, v in given.items()}


def test_a_fault_that_the_capture_shares_is_no_excuse(
    source: Source, engine: EncoderDecoderEngine, alone: dict[str, Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The untouched parts run with transformers' own caches: what is wrong in moec's is not in them, too."""
    right = encoder_decoder_call.functional_cache
    monkeypatch.setattr(
        encoder_decoder_call, "functional_cache", lambda held: right({n: v * 1.5 for n, v in held.items()})
    )
    wrong = EncoderDecoderEngine(engine.encoder, Changed(engine.decoder, _louder))
    proof = prove_encoder_decoder(Joint(source, alone, torch.float32, seed=3), wrong)
    found = proof.find(CacheConsistency)
    assert found is not None and len(found.consistency.failed) == 4 and not proof.ok


def test_a_model_that_differs_itself_is_the_yardstick_of_the_ways_that_failed(
    source: Source, engine: EncoderDecoderEngine, alone: dict[str, Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = source.parts()
    monkeypatch.setattr(source, "parts", lambda: {"encoder": parts["encoder"], "decoder": Cut(parts["decoder"])})
    same = EncoderDecoderEngine(engine.encoder, Changed(engine.decoder, _louder))
    found = prove_encoder_decoder(Joint(source, alone, torch.float32, seed=3), same).find(CacheConsistency)
    assert found is not None and found.ok and all("beside the model's" in w.name for w in found.consistency.ways)
    other = EncoderDecoderEngine(engine.encoder, Changed(engine.decoder, _lost))
    assert not prove_encoder_decoder(Joint(source, alone, torch.float32, seed=3), other).ok


class Cut:
    """A part that says something else when a text is cut, where it holds at most so many tokens."""

    def __init__(self, part: Source, most: int = 99) -> None:
        self._part, self._most = part, most

    def reference(self) -> Engine:
        def cut(given: dict[str, Tensor]) -> dict[str, Tensor]:
            held = next(v for n, v in given.items() if n.endswith("decoder.key")).shape[2]
            return _louder(given) if held <= self._most else given

        return Changed(self._part.reference(), cut)


def test_after_passes_that_change_numbers_the_programs_are_the_yardstick(
    source: Source, engine: EncoderDecoderEngine, alone: dict[str, Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that says something else itself when a text is cut, as quantized experts with a capacity do."""

    def budget(proof: Verification) -> Verification:
        checks = [replace(c, approximate=True) if isinstance(c, Outputs) else c for c in proof.checks]
        return replace(proof, checks=tuple(checks))

    def proof(wrong: Engine, programs: Callable[[], PartsEngine] | None) -> CacheConsistency:
        both = EncoderDecoderEngine(engine.encoder, wrong)
        parts = {name: budget(p) for name, p in alone.items()}
        found = prove_encoder_decoder(Joint(source, parts, torch.float32, seed=3, programs=programs), both)
        check = found.find(CacheConsistency)
        assert check is not None
        return check

    peers = [part.reference() for part in source.parts().values()]
    cut = EncoderDecoderEngine(peers[0], Changed(peers[1], _louder))
    louder, lost = Changed(engine.decoder, _louder), Changed(engine.decoder, _lost)
    assert not proof(louder, lambda: cut).ok, "passes alone made them so"
    parts = source.parts()
    monkeypatch.setattr(source, "parts", lambda: {"encoder": parts["encoder"], "decoder": Cut(parts["decoder"])})
    assert proof(louder, lambda: cut).ok and not proof(louder, None).ok
    monkeypatch.setattr(source, "parts", lambda: {"encoder": parts["encoder"], "decoder": Cut(parts["decoder"], 3)})
    late = proof(louder, lambda: cut).consistency
    assert {w.name for w in late.failed} == {"chunks", SINGLY}, "the model itself moves with short caches alone"
    monkeypatch.setattr(source, "parts", lambda: {"encoder": parts["encoder"], "decoder": Cut(parts["decoder"])})
    assert not proof(lost, lambda: cut).ok, "the programs say something else than this engine"
    assert not proof(louder, lambda: EncoderDecoderEngine(*peers)).ok, "the programs do not differ themselves"


def test_a_failed_part_fails_both(source: Source, engine: EncoderDecoderEngine, alone: dict[str, Verification]) -> None:
    failed = replace(alone["decoder"], checks=(ProvenParts(()), *alone["decoder"].checks))
    proof = prove_encoder_decoder(Joint(source, {**alone, "decoder": failed}, torch.float32, seed=3), engine)
    assert not proof.ok and proof.error is not None and proof.error.where == "part decoder"
