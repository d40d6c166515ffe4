"""The page of a plan; `test_in_browser.py` looks at it in a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from moec.planning.estimate import Estimate, estimate
from moec.planning.measured import tables
from moec.report.plan_page import plan_page
from tests.planning import configs
from tests.planning.test_advice import shape


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
    for part in ("memory-bound", "Roofline, h200", "takes it", "Experts on several devices"):
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


def test_names_are_escaped(tmp_path: Path) -> None:
    plain = found(tmp_path)
    evil = replace(plain, shape=replace(plain.shape, name='<img src="x">\x1b[31m', unknown=("<i>",)))
    page = plan_page(evil, '"><script>')
    assert "<img" not in page and "<script" not in page and "<i>" not in page and "\x1b" not in page
