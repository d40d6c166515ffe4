"""An exam that makes no sense is refused before anything is read."""

from __future__ import annotations

import math

import pytest

from moec.errors import MoecError
from moec.proof.exam import Exam


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"tokens": -1},
        {"max_kl": -0.1},
        {"max_perplexity_ratio": 0.0},
        {"max_kl": math.inf},
        {"max_kl": math.nan},
        {"max_perplexity_ratio": math.inf},
        {"max_perplexity_ratio": math.nan},
    ],
    ids=str,
)
def test_exams_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(MoecError) as caught:
        Exam.of("text", **options)
    assert caught.value.code == "M201"


def test_options_need_a_text() -> None:
    assert Exam.of(None, max_kl=None) is None and Exam.of("t", max_kl=None, window=8) == Exam("t", window=8)
    assert Exam.of(None, max_kl=0.1) is None  # that is for the model's own text
    with pytest.raises(MoecError, match="window says nothing without a text"):
        Exam.of(None, window=8)


def test_an_exam_is_bounded_when_anything_is_asked() -> None:
    assert not Exam("t").bounded and Exam("t", max_kl=0.0).bounded and Exam("t", max_perplexity_ratio=1.0).bounded
