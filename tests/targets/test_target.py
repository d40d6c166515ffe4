"""Targets are plain data: parsed from text and printed back."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.targets.target import Target, place_of


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("onnxruntime", Target("onnxruntime")),
        ("onnxruntime:cuda", Target("onnxruntime", "cuda")),
        ("onnxruntime:cuda,precision=fp16", Target("onnxruntime", "cuda", {"precision": "fp16"})),
        (
            "tensorrt-rtx:sm86,sm89,sm120,precision=fp16",
            Target("tensorrt-rtx", "sm86,sm89,sm120", {"precision": "fp16"}),
        ),
        ("onnxruntime:precision=fp16,threads=2", Target("onnxruntime", "", {"precision": "fp16", "threads": "2"})),
    ],
)
def test_round_trip(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":cuda",
        "onnxruntime:cuda,sm90",
        "onnxruntime:sm90,cuda",
        "onnxruntime:precision=",
        "onnxruntime:=fp16",
        "on nx",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(MoecError) as caught:
        Target.parse(text)
    assert caught.value.code == "M201"


def test_blanks_do_not_matter() -> None:
    assert Target.parse(" onnxruntime:cuda, precision=fp16 ") == Target("onnxruntime", "cuda", {"precision": "fp16"})


@pytest.mark.parametrize("text", ["two", "-1", "²", "1.5"])
def test_threads_that_are_no_number_are_refused(text: str) -> None:
    with pytest.raises(MoecError, match=f"threads={text}") as caught:
        _ = Target("theirs", options={"threads": text}).threads
    assert caught.value.code == "M201"
    assert Target("theirs", options={"threads": "3"}).threads == 3 and Target("theirs").threads == 0


def test_an_option_that_is_said_twice_is_refused() -> None:
    with pytest.raises(MoecError, match="threads is said twice") as caught:
        Target.parse("onnxruntime:threads=2,threads=3")
    assert caught.value.code == "M201"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime:cpu,threads=2", "onnxruntime"),
        ("onnxruntime:cuda,precision=fp16", "onnxruntime:cuda"),
        ("tensorrt-rtx:sm86,sm89", "tensorrt-rtx:sm86,sm89"),
        ("", ""),
    ],
)
def test_the_place_of_a_target_is_its_hardware(text: str, place: str) -> None:
    assert place_of(text) == place
