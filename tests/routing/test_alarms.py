"""Warnings, each at its threshold; `test_figures.py` has the routers that cause them."""

from __future__ import annotations

from dataclasses import replace

from moec.routing.alarms import COLLAPSE, alarms_of, thresholds
from moec.routing.figures import figures_of
from moec.routing.similarity import Similarity
from moec.routing.tally import RouterTally


def test_each_alarm_begins_beyond_its_threshold() -> None:
    tally = RouterTally(8, 2)
    tally.tokens, tally.counts = 800, tally.counts + 200
    good = figures_of("layer", tally)
    assert alarms_of(good) == []
    edge = 2 + COLLAPSE * 6
    for wrong, right, kind in (
        (replace(good, effective_experts=edge - 0.01), replace(good, effective_experts=edge), "collapse"),
        (replace(good, entropy=0.991), replace(good, entropy=0.99), "indifferent"),
        (replace(good, tokens=39), replace(good, tokens=40), "short"),
        (replace(good, dead=(1,)), good, "dead"),
        (replace(good, starved=(1,)), good, "starved"),
    ):
        assert [a.kind for a in alarms_of(wrong)] == [kind] and alarms_of(right) == []
    near = Similarity("outputs", 0.995, 1.0, (0, 1))
    assert [a.kind for a in alarms_of(replace(good, similarity=near))] == ["copies"]
    assert {a.kind for a in alarms_of(replace(good, tokens=1, dead=(1,)))} < thresholds().keys()


def test_a_text_names_the_figure_the_threshold_and_not_every_expert() -> None:
    tally = RouterTally(16, 1)
    tally.tokens, tally.counts[0] = 900, 900
    what = {a.kind: a.what for a in alarms_of(figures_of("layer", tally))}
    assert what["collapse"] == "1.0 of 16 experts in effect, below 4.8"
    assert what["dead"] == "15 of 16 experts got no token: 1, 2, 3, 4, 5, 6, 7, 8, …"
