"""A budget on a text decides about approximate passes, and nothing that says other things keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.pipeline.pipeline import Pipeline
from moec.proof.exam import Exam
from moec.proof.subject import Subject
from moec.proof.verification import prove
from moec.text.corpus import corpus_of
from tests.moe_module import MoeModel, source_of


class Random(EagerEngine):
    """Random logits, of the same spread."""

    def run(self, inputs) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(0)
        outputs = super().run(inputs)
        return {k: torch.randn(v.shape, generator=generator) * v.std() for k, v in outputs.items()}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, 50, 300))
    source, exam = source_of(MoeModel()), Exam(str(path), window=32, max_kl=0.05)
    captured = source.capture()
    program, _ = Pipeline.parse("quantize(bits=8, group=16, experts=16)").run(captured)
    return Subject(source, captured, program, exam=exam, corpus=corpus_of(exam.text, source), engine_bytes=7)


def test_the_text_decides(subject: Subject) -> None:
    proof = prove(subject, EagerEngine(subject.program))
    proof.require()
    assert proof.comparison.tolerance is None and proof.quality is not None and proof.quality.engine_bytes == 7
    assert 0 < proof.quality.kl_mean < 0.05


def test_random_logits_are_not_accepted(subject: Subject) -> None:
    proof = prove(subject, Random(subject.program))
    assert not proof.ok and proof.comparison.ok  # they are numbers, and that is all
    alone = replace(proof, checks=tuple(c for c in proof.checks if c.name == "text"))
    with pytest.raises(MoecError, match="mean KL divergence") as caught:
        alone.require()
    assert caught.value.code == "M107"


def test_a_bound_on_outputs_that_was_asked_for_stays(subject: Subject) -> None:
    asked = replace(subject, asked=1e-6)
    assert not prove(asked, EagerEngine(subject.program)).comparison.ok
