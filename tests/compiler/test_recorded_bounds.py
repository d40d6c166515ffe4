"""What a manifest records counts where it asks for more than moec does, and is named where it asks for less."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moec.compiler.options import Options
from moec.compiler.recorded_bounds import Recorded
from moec.pipeline.pipeline import Pipeline
from moec.proof.subject import Subject
from moec.targets.target import Target
from tests.learned import captured, source

TARGET = Target("onnxruntime")


def recorded(passes: str = "", shown: Target = TARGET, **settings: Any) -> Recorded:
    program = Pipeline.parse(passes).run(captured())[0]
    return Recorded(Options(**settings), shown, Subject(source(), captured(), program))


def test_a_tighter_bound_counts() -> None:
    for tolerance, kept in ((1e-4, 1e-4), (1e-3, 1e-3), (2e-3, None), (1e9, None)):
        found = recorded(tolerance=tolerance)
        assert found.tighter == kept and [b.name for b in found.looser] == ([] if kept else ["tolerance"])
    assert recorded("quantize(bits=4)", tolerance=0.4).tighter == 0.4 and not recorded("quantize(bits=4)").looser


@pytest.mark.parametrize(("bits", "own"), [(8, 0.005), (2, 0.3)])
def test_budgets_on_a_text_are_never_looser_than_the_defaults(bits: int, own: float) -> None:
    passes = f"quantize(bits={bits})"
    found = recorded(passes, text="t", max_kl=1e6, max_perplexity_ratio=1e6)
    assert found.exam is not None and found.exam.max_kl == own and found.exam.max_perplexity_ratio == math.exp(own)
    assert {b.flag for b in found.looser} == {"--max-kl 1e+06", "--text t --max-perplexity-ratio 1e+06"}
    tight = recorded(passes, text="t", max_kl=1e-3)
    assert tight.exam is not None and tight.exam.max_kl == 1e-3 and not tight.looser
    assert recorded(passes, max_kl=1e6).looser and recorded(passes).exam is None


def test_what_accepts_a_bound_says_it_in_full() -> None:
    assert recorded(tolerance=1.23456789).looser[0].flag == "--tolerance 1.23456789"
    ratio = recorded("quantize(bits=8)", text="my text", window=32, max_perplexity_ratio=1.5).looser
    assert [b.flag for b in ratio] == ["--text 'my text' --window 32 --max-perplexity-ratio 1.5"]


def test_what_the_files_do_not_show_of_a_target_is_named() -> None:
    claimed = Target("onnxruntime", options={"accuracy": "int8", "threads": "2"})
    found = recorded(target=claimed, shown=Target("onnxruntime", options={"threads": "2"})).looser
    assert [b.name for b in found] == ["target accuracy=int8"] and not recorded(target=claimed, shown=claimed).looser
