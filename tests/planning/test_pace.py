"""Measured tables where there are any, else the roofline."""

from __future__ import annotations

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


def test_tables_go_before_the_roofline() -> None:
    why = measured.why_none(devices()["h200"])
    if why:
        pytest.skip(why)
    found = pace.decode_time(mixture(), BF16, devices()["h200"], 8, 100)
    assert found.origin.startswith("measured by others") and found.parts
