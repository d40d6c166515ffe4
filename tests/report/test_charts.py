"""What is drawn of a report: what differs somewhere, for every layer and every expert."""

from __future__ import annotations

from dataclasses import replace

from moec.proof.agreement import Agreement, BlockAgreement, LayerError
from moec.proof.coverage import ExpertLoad
from moec.report.charts import (
    calibration_charts,
    equal_inside,
    layer_charts,
    load_charts,
    run_chart,
    text_load_charts,
)
from tests.report.test_report import INSIDE


def test_layers_and_routers_have_a_chart_where_they_differ() -> None:
    error, routers = layer_charts(INSIDE)
    assert "Error of each layer" in error and "blocks.1: 4.00e-02" in error and "‖d‖ / ‖untouched‖" in error
    assert "Choices of the routers" in routers and "blocks.1: 93.00%" in routers and routers.count("<polyline") == 2
    assert equal_inside(INSIDE) == ""


def test_what_differs_nowhere_is_said_and_not_drawn() -> None:
    same = Agreement(9, (BlockAgreement("b", 1.0, 1.0, (4,), (4,)),), (LayerError("a", 0.0),))
    assert layer_charts(same) == [] and equal_inside(same).count("the same") == 2
    broken = replace(same, layers=(LayerError("a", float("inf")), LayerError("b", float("nan"))))
    assert len(layer_charts(broken)) == 1 and "every layer" not in equal_inside(broken)


def test_few_blocks_have_a_chart_each_and_many_one_map() -> None:
    loads = [ExpertLoad("moe", f"layers.{k}", (5, 0, 3)) for k in range(7)]
    assert len(load_charts(loads[:6])) == 6 and "2 of 3 experts reached, not reached: 1" in load_charts(loads[:1])[0]
    (whole,) = load_charts(loads)
    assert whole.count("<path") == 3 and "<rect" not in whole
    blocks = INSIDE.blocks
    assert len(text_load_charts(blocks)) == 2 and len(text_load_charts(blocks * 4)) == 1


def test_fitted_routers_have_a_chart_and_other_passes_none() -> None:
    block = {"module": "blocks.0", "identical_before": 0.62, "identical_after": 0.8}
    steps = [
        {"name": "calibrate-router", "facts": {"blocks": [block, {**block, "module": "blocks.1"}]}},
        {"name": "quantize", "facts": {"blocks": [{"module": "x"}]}},
    ]
    (plot,) = calibration_charts([*steps, {"name": "fuse-moe"}])
    assert "fitted: 80.00%" in plot and ">60.0%<" in plot and ">100.0%<" in plot


def test_a_run_is_drawn_under_what_it_measured() -> None:
    drawn = run_chart("decode", {"engine": [1.0, 2.0]})
    assert "Time of each further token" in drawn and drawn.count("<circle") == 2
