"""Presets as formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.cli.plan_recipes import recipes
from tests.command_line import Cli
from tests.planning import configs


def test_a_format_comes_before_a_preset_of_its_name() -> None:
    found = recipes(["bf16", "int4", "balanced", "preset:int4"])
    assert set(found) == {"balanced", "preset:int4"} and "quantize" in str(found["balanced"])


def test_presets_pack_the_model_as_moec_would(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli = Cli(capsys)
    path = configs.write(tmp_path, configs.LLAMA_1B | {"num_hidden_layers": 2})
    found = cli.json("plan", path, "--format", "balanced,bf16,preset:int8", "--context", "16", "--versus", path)
    balanced, bf16, int8 = (s["memory"]["weights"] for s in found["situations"])
    numbers = found["parameters"]["total"]
    assert bf16 == 2 * numbers and int8 == pytest.approx(numbers * (1 + 2 / 64), rel=1e-3)
    layer = 2 * (2048 * 2048 + 2048 * 512) + 2048 * 8192  # attention and down in 8 bits, gate and up in 4
    expected = 128256 * 2048 + 2 * (layer + 2 * 2048 * 8192 / 2)
    assert balanced == pytest.approx(expected + numbers / 64 * 2, rel=1e-3)
    one, other = found["beside"][0]["bytes"]
    assert one == other == pytest.approx(balanced, rel=0.01)  # the other one is packed too
    cli("plan", path, "--format", "preset:unknown", status=2)
    assert "--format" in cli.err


def test_rows_of_what_passes_pack_say_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli = Cli(capsys)
    path = configs.write(tmp_path, configs.LLAMA_1B | {"num_hidden_layers": 1})
    asked = ("plan", path, "--format", "bf16,fp32", "--context", "16")
    (packed, rest), (bf16, fp32) = (
        cli.json(*asked, *more)["situations"] for more in (("--pass", "quantize(bits=4)"), ("--pass", "upcycle"))
    )
    assert [s["format"] for s in (packed, rest, bf16, fp32)] == ["packed form", "fp32", "bf16", "fp32"]
    assert packed["memory"]["weights"] < rest["memory"]["weights"]  # what is not packed is wider there
    text = cli(*asked[:2], "--context", "16", "--pass", "quantize(bits=4)")
    assert "in packed form" in text and "bf16" not in text
