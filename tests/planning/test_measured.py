"""Tables of measured kernels; most of it needs the extra `moec[plan]`."""

from __future__ import annotations

import numpy as np
import pytest

from moec.planning import measured
from moec.planning.composed import composed
from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.measured import FRAMEWORKS, SYSTEMS, kinds, missing, tables, why_none
from moec.planning.work import Work
from tests.planning.shapes import mixture

H200 = devices()["h200"]
with_tables = pytest.mark.skipif(bool(why_none(H200)), reason=why_none(H200) or "they are here")


def test_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nobody's tables hold rtx3090" in why_none(devices()["rtx3090"])
    monkeypatch.setattr(measured, "PACKAGE", "no_such_package")
    assert "pip install 'moec[plan]'" in why_none(H200) == missing(["rtx3090", "h200"])
    assert missing(["rtx3090"]) == "" and tables.__wrapped__("h200", "bf16") == ()


def test_every_system_is_a_device() -> None:
    assert set(SYSTEMS) <= set(devices()) and tables("rtx3090", "bf16") == ()


@with_tables
def test_published_times_of_experts_on_an_h200() -> None:
    """Best of the frameworks in microseconds, read from the tables by other means (pandas) before this was written."""
    published = {(1, 4096, 14336, 2, 8): 189, (1, 2048, 768, 8, 128): 37, (8192, 2048, 768, 8, 128): 1224}
    found = [each for each in (framework.table("experts") for framework in tables("h200", "bf16")) if each]
    for size, us in published.items():
        asked = np.array([[*size, min(size[4], size[0] * size[3]), 3]], float)
        assert min(float(each.at(asked)[0]) for each in found) * 1e6 == pytest.approx(us, rel=0.05), size


@with_tables
def test_every_framework_has_what_it_takes_to_compose_a_step() -> None:
    for framework in tables("h200", "bf16"):
        held = {kind for kind in kinds() if framework.table(kind) is not None}
        assert {"matrices", "experts", "attention", "attention of a prompt"} <= held, framework.framework
    assert {t.framework for t in tables("h200", "bf16")} == set(FRAMEWORKS.values())


@with_tables
def test_held_out_points_are_within_a_quarter() -> None:
    """The whole of it is benchmarks/plan_tables.py; here vLLM's table of experts, and the same with wrong times."""
    table = tables("h200", "bf16")[0].table("experts")
    assert table is not None and "vLLM" in table.origin
    held = np.random.default_rng(0).random(len(table.seconds)) < 0.1
    found = table.without(held).at(table.sizes[held]) / table.seconds[held]
    assert np.mean(np.abs(found - 1) <= 0.25) >= 0.9
    assert np.mean(np.abs(1.3 * found - 1) <= 0.25) < 0.9


@with_tables
def test_a_step_lies_near_the_roofline_and_not_below_it() -> None:
    for format in ("bf16", "fp8"):
        work = Work(mixture(128, 8, 24, 2048, 768), FORMATS[format], 32, 2048)
        found = composed(work, H200, tables("h200", format))
        assert found is not None and 0.9 * work.step.bytes / 4.8e12 < found.low < 6 * work.step.bytes / 4.8e12


@with_tables
def test_split_over_devices_exchanges_are_measured_too() -> None:
    work = Work(mixture(8, 2, 32, 4096, 14336), FORMATS["bf16"], 32, 2048)
    one, four = (composed(work, H200, tables("h200", "bf16"), n) for n in (1, 4))
    assert one is not None and four is not None and one.low / 4 < four.low < one.low / 2
    assert 32 * 2 * 2e-6 < dict(four.parts)["exchanges"] < 32 * 2 * 30e-6
