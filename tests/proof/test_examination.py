"""An exam bounds its windows by the model's context, takes the source's tokens only, and decides in the place of other
budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moec.compiler.engine_folder import require_same_text
from moec.compiler.open import open_source
from moec.compiler.proving import fitting_exam
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.pipeline import Pipeline
from moec.proof.exam import Exam
from moec.proof.examination import examine
from moec.text.corpus import corpus_of
from tests.zoo import save


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, 96, 700))
    return path


def test_windows_fit_the_context_and_the_limit(mixtral: Path, tokens: Path) -> None:
    source, exam = open_source(str(mixtral)), Exam(str(tokens), window=1000, tokens=600)
    captured, corpus = source.capture(), corpus_of(exam.text, source)
    fitting = fitting_exam(exam, source)
    assert fitting is not None
    quality = examine(fitting, corpus, source.reference(), EagerEngine(captured), captured, captured)
    assert (quality.exam.window, quality.windows, quality.tokens) == (256, 3, 597)  # max_position_embeddings is 256
    assert quality.agreement is not None and quality.agreement.tokens == 600 and len(quality.agreement.blocks) == 2
    assert quality.shift is None  # nothing was approximated
    assert quality.sha256 == corpus.sha256


def test_after_approximate_passes_the_damage_is_split(mixtral: Path, tokens: Path) -> None:
    source, exam = open_source(str(mixtral)), Exam(str(tokens), window=50, tokens=200)
    captured = source.capture()
    program, _ = Pipeline.parse("quantize(bits=4, group=16), find-moe, fuse-moe").run(captured)
    quality = examine(exam, corpus_of(exam.text, source), source.reference(), EagerEngine(program), captured, program)
    assert quality.shift is not None and quality.shift.tokens == quality.tokens == 196
    assert quality.shift.both == pytest.approx(quality.kl_mean, rel=1e-3) and 0 < quality.shift.routes < quality.kl_mean


def test_tokens_that_the_source_lacks_and_sources_without_tokens(mixtral: Path, tokens: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "high.npy", np.array([1, 2, 96]))
    with pytest.raises(MoecError, match="no token 96"):
        corpus_of(str(tmp_path / "high.npy"), open_source(str(mixtral)))
    for name in ("bert", "vit"):
        with pytest.raises(MoecError, match="no quality on text") as caught:
            corpus_of(str(tokens), open_source(save(name, tmp_path / name)))
        assert caught.value.code == "M211"


def test_a_changed_text_is_noticed(mixtral: Path, tokens: Path, tmp_path: Path) -> None:
    source, exam = open_source(str(mixtral)), Exam(str(tmp_path / "t.npy"), window=8, tokens=16)
    captured = source.capture()
    np.save(tmp_path / "t.npy", np.load(tokens))
    quality = examine(exam, corpus_of(exam.text, source), source.reference(), EagerEngine(captured), captured, captured)
    require_same_text(CalibrationText(exam.text), quality.sha256, "judged")
    np.save(tmp_path / "t.npy", np.load(tokens)[::-1])
    for change in (lambda: None, (tmp_path / "t.npy").unlink):
        change()
        with pytest.raises(MoecError) as caught:
            require_same_text(CalibrationText(exam.text), quality.sha256, "judged")
        assert caught.value.code == "M106"
