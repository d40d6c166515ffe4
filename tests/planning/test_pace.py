"""Measured tables where there are any, else the roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moec.planning import measured, pace
from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.step import decode_step, prompt_step, time_of
from tests.planning.shapes import mixture

BF16 = FORMATS["bf16"]


def test_a_device_that_nobody_measured_gets_the_roofline() -> None:
    shape, device = mixture(), devices()["rtx4090"]
    assert pace.decode_time(shape, BF16, device, 8, 100) == time_of(decode_step(shape, BF16, 8, 100), device, BF16)
    assert pace.prompt_time(shape, BF16, device, 1, 100) == time_of(prompt_step(shape, BF16, 1, 100), device, BF16)


def test_a_format_that_nobody_measured_gets_the_roofline() -> None:
    shape, device, int2 = mixture(), devices()["h200"], FORMATS["int2"]
    assert pace.decode_time(shape, int2, device, 8, 100).origin.startswith("roofline")


def test_what_a_pass_has_packed_is_in_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The format is still called bf16, and its kernels are not what runs."""
    monkeypatch.setattr(pace, "tables", lambda *_: pytest.fail("tables were asked"))
    whole = mixture()
    packed = replace(whole, tensors=tuple(replace(t, codes=t.count // 2) for t in whole.tensors))
    found = pace.decode_time(packed, BF16, devices()["h200"], 8, 100)
    assert found == time_of(decode_step(packed, BF16, 8, 100), devices()["h200"], BF16)
    assert packed.packed and not whole.packed


def test_tables_go_before_the_roofline() -> None:
    why = measured.why_none(devices()["h200"])
    if why:
        pytest.skip(why)
    found = pace.decode_time(mixture(), BF16, devices()["h200"], 8, 100)
    assert found.origin.startswith("measured by others") and found.parts
