"""Options of a target: what a backend does not take is refused in three lines, whatever it is."""

from __future__ import annotations

import pytest

from moec import registry
from moec.errors import MoecError
from moec.targets.backend import refuse
from moec.targets.declared import Count, Option
from moec.targets.target import Target
from moec.targets.target_options import refused_options

DECLARED = {
    "speed": Option(("fast", "slow"), "fast", "How fast."),
    "threads": Option(Count(high=8), "1", "How many."),
    "max_DIMENSION": Option(Count("tokens"), "1024", "How large."),
}


def reasons(**options: str) -> list[str]:
    return [r.reason for r in refused_options(Target("x", options=options), DECLARED)]


def test_what_is_declared_is_taken() -> None:
    assert reasons(speed="fast", threads="8", max_batch="3", max_past_sequence="4096") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("speed", "fastest"),
        ("threads", "two"),
        ("threads", "-1"),
        ("threads", "0"),
        ("threads", "9"),
        ("threads", "1.5"),
        ("threads", "²"),
        ("threads", "٣"),
        ("threads", "9" * 5000),
        ("max_", "3"),
        ("max_batch", "fast"),
        ("min_batch", "3"),
        ("DIMENSION", "3"),
    ],
    ids=str,
)
def test_what_is_not_declared_is_refused_by_name(key: str, value: str) -> None:
    assert reasons(**{key: value}) == [f"no option {key}={value}"]


def test_the_fix_says_what_is_taken() -> None:
    fixes = [r.fix for r in refused_options(Target("x", options={"speed": "x", "threads": "x", "y": "x"}), DECLARED)]
    assert fixes == [
        "speed takes fast or slow",
        "threads takes a whole number from 1 to 8",
        "options are speed=fast|slow, threads=N, max_DIMENSION=tokens",
    ]


WRONG = ("threads=two", "threads=-1", "threads=²", "workspace=two", "workspace=²", "workspace=0", "max_batch=two",
         "max_batch=²", "max_batch=0", "precision=7", "accuracy=1", "lowering=1")  # fmt: skip


@pytest.mark.parametrize("backend", registry.names("backends"))
@pytest.mark.parametrize("option", WRONG)
def test_every_backend_refuses_values_of_the_wrong_type(option: str, backend: str) -> None:
    target = Target.parse(f"{backend}:{option}")
    with pytest.raises(MoecError, match=f"no option {option}") as caught:
        refuse(registry.find("backends", backend)().options(target))
    assert caught.value.code == "M208"


def test_what_is_nearly_right_is_answered_with_what_is_right() -> None:
    (name, value) = refused_options(Target("x", options={"sped": "fast", "speed": "fats"}), DECLARED)
    assert name.fix == "did you mean speed=fast|slow?" and value.fix == "did you mean fast?"
