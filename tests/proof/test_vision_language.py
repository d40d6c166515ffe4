"""Three parts that do not fit each other are found out, though each is right alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import moec
from moec.execution.vision_language import VisionLanguageEngine
from moec.frontend.source import Source
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.proven_parts import ProvenParts
from moec.proof.checks.sight import Sight
from moec.proof.joint import Joint
from moec.proof.verification import Verification
from moec.proof.vision_language import prove_vision_language
from tests.changed import Changed
from tests.vision_language import IMAGE

pytest.importorskip("PIL", reason="processors of images draw with Pillow")
Given = dict[str, Tensor]


@pytest.fixture(scope="module")
def source(seeing: Path) -> Source:
    return moec.open_source(str(seeing))


@pytest.fixture(scope="module")
def engine(seeing_engine: Path) -> VisionLanguageEngine:
    found = moec.load(seeing_engine)
    assert isinstance(found, VisionLanguageEngine)
    return found


@pytest.fixture(scope="module")
def alone(seeing_engine: Path) -> dict[str, Verification]:
    return {part: moec.api.read_report(seeing_engine / part).proof for part in ("vision", "embedding", "decoder")}


def _of_another_image(given: Given) -> Given:
    return {**given, "pixel_values": given["pixel_values"].roll(1, 0)}


def _elsewhere(given: Given) -> Given:
    """Rows of images one token further on."""
    return {**given, "input_ids": given["input_ids"].roll(1, 1)}


def _shuffled(given: Given) -> Given:
    """Rows of one image in another order."""
    return {**given, "image_features": given["image_features"].flip(0)}


def _blind(given: Given) -> Given:
    """No place is of an image, so that the decoder reads tokens alone."""
    return {**given, "input_ids": torch.where(given["input_ids"] == IMAGE, 0, given["input_ids"])}


def _lost(given: Given) -> Given:
    """Values in the cache that are not those of the text."""
    return {n: v.flip(2) if n.endswith(".value") else v for n, v in given.items()}


def test_the_right_parts_are_equal(
    source: Source, engine: VisionLanguageEngine, alone: dict[str, Verification]
) -> None:
    proof = prove_vision_language(Joint(source, alone, torch.float32, seed=3), engine)
    assert proof.ok and len(proof.checks) == 4


@pytest.mark.parametrize(
    ("part", "change", "kind"),
    [
        ("vision", _of_another_image, Outputs),
        ("embedding", _elsewhere, Outputs),
        ("embedding", _shuffled, Outputs),
        ("embedding", _blind, Outputs),
        ("decoder", _lost, CacheConsistency),
    ],
)
def test_wrong_ones_are_found(
    part: str,
    change: Callable[[Given], Given],
    kind: type[Outputs | CacheConsistency],
    source: Source,
    engine: VisionLanguageEngine,
    alone: dict[str, Verification],
) -> None:
    parts = {name: getattr(engine, name) for name in ("vision", "embedding", "decoder")}
    wrong = VisionLanguageEngine(**{**parts, part: Changed(parts[part], change)}, image_token=IMAGE)
    proof = prove_vision_language(Joint(source, alone, torch.float32, seed=3), wrong)
    found = proof.find(kind)
    assert not proof.ok and found is not None and not found.ok
    assert proof.error is not None and proof.error.code == "M101"


def test_a_model_whose_images_change_nothing_cannot_be_proven(
    source: Source, engine: VisionLanguageEngine, alone: dict[str, Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then an engine that mixes images up would pass."""
    still = Changed(
        source.reference(), lambda given: {n: v * 0 if n == "pixel_values" else v for n, v in given.items()}
    )
    still.check = source.reference().check  # type: ignore[method-assign]  # text alone, too
    monkeypatch.setattr(source, "reference", lambda: still)
    wrong = Changed(engine.vision, lambda given: {n: v * 0 for n, v in given.items()})
    blind = VisionLanguageEngine(wrong, engine.embedding, engine.decoder, IMAGE)
    proof = prove_vision_language(Joint(source, alone, torch.float32, seed=3), blind)
    outputs, sight = proof.find(Outputs), proof.find(Sight)
    assert outputs is not None and outputs.ok and sight is not None and not sight.ok
    assert proof.error is not None and proof.error.code == "M104" and "pixel_values*" in proof.error.fix


def test_a_failed_part_fails_all(source: Source, engine: VisionLanguageEngine, alone: dict[str, Verification]) -> None:
    failed = replace(alone["vision"], checks=(ProvenParts(()), *alone["vision"].checks))
    proof = prove_vision_language(Joint(source, {**alone, "vision": failed}, torch.float32, seed=3), engine)
    assert not proof.ok and proof.error is not None and proof.error.where == "part vision"
