"""The figures that decide, and commands that do what they say."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from moec.cli.build import compile_command
from moec.compiler.options import SETTINGS, Options
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.text import TextQuality
from moec.report.overview import command, tiles, ways_to_make, ways_to_run
from tests.report.test_report import QUALITY, make, with_check
from tests.report.test_speed import SPEED


def test_what_is_not_known_has_no_tile() -> None:
    assert [tile.name for tile in tiles(make(), ())] == ["Error", "Experts"]
    assert [tile.name for tile in tiles(make(), [SPEED])] == ["Error", "Experts", "Speed"]


def test_quality_stands_in_the_place_of_the_error_where_a_text_decides() -> None:
    tile = tiles(with_check(make(), TextQuality(QUALITY)), ())[0]
    assert (tile.name, tile.figure) == ("Quality", "0.02") and "prose.txt" in tile.beside and tile.ok


def test_the_error_is_the_figure_that_decides() -> None:
    """Of an encoder in few bits the root mean square, not the largest difference, which nothing bounds."""
    (output,) = make().comparison.outputs
    found = replace(make().comparison, tolerance=None, max_rms=0.4, max_row=1.1, outputs=(replace(output, rms=0.25),))
    tile = tiles(with_check(make(), Outputs(found)), ())[0]
    assert (tile.figure, tile.beside) == ("0.25", "rms(d) / std, 0.4 allowed")


def test_a_wrong_engine_has_a_red_tile() -> None:
    assert not tiles(make(seed=-1), ())[0].ok and tiles(make(), ())[0].ok


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": "onnxruntime:cpu,threads=2", "pipeline": "upcycle(experts=8, top_k=2), quantize(bits=8)", "seed": 3},
        {"text": "a text.txt", "max_kl": 0.05, "cache": False, "leave_out": ("a*", "b"), "optimize_for": "throughput"},
        {"inputs": ("ids=batch,sequence:int64<1000",), "tolerance": 0.25, "build": False, "layout": "plain"},
    ],
)
def test_the_command_has_the_settings_of_the_report(settings: dict[str, Any]) -> None:
    options = Options.of({"verify": "full", **settings})
    report = replace(make(), source="a model/", settings=options.to_plain())
    words = shlex.split(command(report))
    assert words[:3] == ["moec", "compile", "a model/"]
    parsed = compile_command.make_context("compile", words[2:]).params
    given = {name: parsed[name] for name in SETTINGS if parsed.get(name) not in (None, ())}
    assert Options.of({**given, "verify": "full"}).to_plain() == options.to_plain()


def test_ways_to_run_suit_target_and_layout() -> None:
    report = make()

    def names(**settings: Any) -> list[str]:
        return [name for name, _ in ways_to_run(replace(report, settings={**report.settings, **settings}))]

    assert names() == ["moec", "Python", "ONNX Runtime"]
    assert names(layout="triton")[-1] == "Triton Inference Server" and names(target="tensorrt:sm90") == names()[:2]
    cuda = replace(report, settings={**report.settings, "target": "onnxruntime:cuda"})
    assert "CUDAExecutionProvider" in ways_to_run(cuda)[-1][1]
    decoder = replace(report, account={"inputs": ["input_ids", "attention_mask", "past_key_values.0.key"]})
    assert "Once upon" in ways_to_run(decoder)[0][1] and "--inputs" in ways_to_run(report)[0][1]


def test_a_model_made_in_memory_has_no_command() -> None:
    assert ways_to_make(make()) == [] and len(ways_to_make(replace(make(), source_hashes={"a": "b"}))) == 3
