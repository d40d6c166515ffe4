"""The plots in the documentation show what `benchmarks/results/` holds today."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.pages import PAGES, ROOT, links

PICTURES = ROOT / "docs" / "pictures"


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "scripts"), *sys.path])
    return importlib.import_module("pictures")


def as_json(figures: object) -> object:
    return json.loads(json.dumps(figures))


@pytest.mark.parametrize("name", ["decoder", "experts-block", "proof", "quality", "quantized-decoder"])
def test_a_picture_shows_the_results(pictures: ModuleType, name: str) -> None:
    drawn = pictures.recorded(PICTURES / f"{name}.svg")
    assert drawn == as_json(pictures.PICTURES[name][0]()), f"{name}.svg is older than its results: make pictures"


def test_every_picture_is_tested_and_shown(pictures: ModuleType) -> None:
    shown = {Path(link).stem for link in links(ROOT / "docs" / "benchmarks.md") if link.startswith("pictures/")}
    assert shown == set(pictures.PICTURES) == {"decoder", "experts-block", "proof", "quality", "quantized-decoder"}


def test_every_screenshot_is_shown_on_a_page_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "scripts"), *sys.path])
    taken = {f"pictures/{name}.png" for name in importlib.import_module("screenshots").PICTURES}
    shown = {link for page in PAGES for link in links(page) if link.startswith("pictures/")}
    assert taken <= shown == {f"pictures/{file.name}" for file in PICTURES.iterdir()}
    assert sum(file.stat().st_size for file in PICTURES.glob("*.png")) < 500_000


def test_newer_results_are_seen(pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads((pictures.RESULTS / "decoder_cpu.json").read_text())
    next(row for row in rows["rows"] if row["unit"] == "tokens/s")["value"] *= 1.01
    (tmp_path / "decoder_cpu.json").write_text(json.dumps(rows))
    monkeypatch.setattr(pictures, "RESULTS", tmp_path)
    assert as_json(pictures.decoder()) != pictures.recorded(PICTURES / "decoder.svg")


def test_a_picture_is_drawn_alike(pictures: ModuleType, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install .[docs]")
    pictures.draw("quality", tmp_path / "a.svg")
    assert pictures.recorded(tmp_path / "a.svg") == as_json(pictures.quality())
    said = (tmp_path / "a.svg").read_text()
    assert "KL divergence, nats a token" in said and "experts dropped" in said, matplotlib.__version__


def ratios(pictures: ModuleType, name: str, over: str) -> dict[str, dict[str, float]]:
    """Case -> who -> time over moec's, as the results of decoders say it."""
    found: dict[str, dict[str, float]] = {}
    for row in pictures._read(name)["rows"]:
        if row["unit"] == f"x {over}":
            found.setdefault(row["case"], {})[row["who"]] = row["value"]
    return found


def test_the_comparison_says_what_was_measured(pictures: ModuleType) -> None:
    page = (ROOT / "docs" / "beside.md").read_text()
    exporter = pictures.experts_block()["OnnxExporter"]
    whole, packed = (
        ratios(pictures, "decoder_cpu", "moec"),
        ratios(pictures, "quantized_decoder_cpu", "moec int4 rounded"),
    )
    for said in (
        f"1 token | 1 | transformers' ONNX exporter {exporter['B']['1']:.2f}, {exporter['A']['1']:.2f} |",
        f"1024 tokens | 1 | transformers' ONNX exporter {exporter['A']['1024']:.2f}, {exporter['B']['1024']:.2f} |",
        f"{whole['moe decode']['llama.cpp']:.2f}** | [decoder_cpu.md]",  # the upper end of what speed.md gives
        f"–{whole['dense decode']['genai builder']:.2f}, llama.cpp 1.04–{whole['dense decode']['llama.cpp']:.2f} |",
        f"Qwen3-MoE, 4 bits, decoding | 1 | **llama.cpp {packed['moe']['llama.cpp q4_0']:.2f}** |",
        f"dense Qwen3, 4 bits, decoding | 1 | **genai's builder {packed['dense']['genai builder int4']:.2f}** |",
    ):
        assert said in page, said
