"""The page of a plan; `test_in_browser.py` looks at it in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from moec.planning.estimate import Estimate, estimate
from moec.planning.load import read_load
from moec.planning.measured import tables
from moec.planning.probed import keep
from moec.planning.serving import Asked
from moec.report.plan_page import plan_page
from tests.planning import configs
from tests.planning.records import own_cache, record
from tests.planning.test_advice import shape

pytestmark = pytest.mark.usefixtures("roofline_only")


def found(tmp_path: Path, **asked: object) -> Estimate:
    """An estimate of Mixtral on a device that holds it and one that does not."""
    usual = {"formats": ("bf16", "int4-g128-zero"), "devices": ("h200", "rtx4090"), "batches": (1, 8, 64)}
    return estimate(shape(tmp_path, configs.MIXTRAL), **{**usual, "context": 8192, **asked})  # type: ignore[arg-type]


def test_the_page_holds_what_was_asked_and_loads_nothing(tmp_path: Path) -> None:
    page = plan_page(found(tmp_path, ranks=(8,)), "mixtral/", [("Compiling for onnxruntime", "takes it")])
    assert page.startswith("<!doctype html>\n<html") and "<title>moec plan: MixtralForCausalLM" in page
    assert "46,702,792,704" in page and page.count("<svg") == 6 and "<script" not in page
    assert re.findall(r'(?:src|href)="|url\(', page) == []
    assert page.count('role="img" aria-label="') == 6
    for part in ("memory-bound", "Roofline, h200", "takes it"):
        assert part in page, part
    assert ("measured by others" if tables("h200", "bf16") else "roofline; shares of") in page
    assert "One rtx4090 does not hold it" in page and "No device was named" not in page


def test_without_devices_it_says_what_is_missing(tmp_path: Path) -> None:
    page = plan_page(found(tmp_path, devices=()))
    assert "No device was named" in page and "Roofline" not in page and page.count("<svg") == 4


def test_two_models_stand_beside_each_other(tmp_path: Path) -> None:
    llama = shape(tmp_path, configs.LLAMA_70B)
    page = plan_page(found(tmp_path, versus=llama))
    assert "Beside LlamaForCausalLM" in page and "as good by folklore" not in page and ">0.19<" in page


def test_a_measured_load_is_drawn(tmp_path: Path) -> None:
    layers = [{"layer": f"model.layers.{n}", "load": [4, 3, 2, 1, 1, 1, 0, 1]} for n in range(32)]
    (tmp_path / "load.json").write_text(json.dumps({"layers": layers}))
    load = read_load(str(tmp_path / "load.json"), shape(tmp_path, configs.MIXTRAL))
    page = plan_page(found(tmp_path, asked=Asked(load=load)))
    assert "Where the tokens go" in page and "Share of each expert" in page and page.count("<svg") == 8
    assert "load.json: 2 at 1" in page and "2.5 times the mean" in page and "hot experts" in page
    assert "Where the tokens go" not in plan_page(found(tmp_path))


def test_this_machine_stands_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache(tmp_path / "cache", monkeypatch)
    keep(record())
    llama = shape(tmp_path, configs.LLAMA_1B | {"num_hidden_layers": 2})
    page = plan_page(estimate(llama, ("int4",), ("cpu", "h200"), (1,), 64))
    assert "Speed by batch, cpu, int4" in page and "Roofline, cpu, int4" in page and "measured here on 2026" in page
    assert "int4, batch 1, cpu:" in page and "int4, batch 1:" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    plain = found(tmp_path)
    evil = replace(plain, shape=replace(plain.shape, name='<img src="x">\x1b[31m', unknown=("<i>",)))
    page = plan_page(evil, '"><script>')
    assert "<img" not in page and "<script" not in page and "<i>" not in page and "\x1b" not in page
