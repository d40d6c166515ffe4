"""The page shows the figures, escapes what it is given, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from moec.coverage import ExpertLoad
from moec.page import bars, block_table, html, markdown, verdict
from moec.report import Artefact
from tests.test_report import make


class Tags(HTMLParser):
    """Counts tags and remembers attributes that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = html(make())
    tags = Tags(text)
    assert tags.loads == [] and not {"script", "link", "iframe", "img"} & set(tags.counts)
    assert "url(" not in text and "@import" not in text and not re.search(r"https?://", text)
    assert "prefers-color-scheme: dark" in text


def test_every_expert_has_a_bar_and_missed_ones_are_marked() -> None:
    report = make()
    assert Tags(html(report)).counts["rect"] == 8 and 'class="missed"' not in html(report)
    load = ExpertLoad("moe", "blocks.0", (5, 0, 3))
    partly = replace(report, coverage=replace(report.coverage, loads=(load,)))
    assert html(partly).count('class="missed"') == 1 and "not reached: 1" in html(partly)
    assert "did not reach 1 of 3 experts" in verdict(partly)


def test_bars_are_in_proportion_and_inside_the_drawing() -> None:
    few, many = bars((4, 2, 0)), bars((1,) * 256)
    assert few[0]["height"] == 2 * few[1]["height"] and few[2]["height"] == 1
    assert all(b["y"] + b["height"] == few[0]["height"] for b in few)
    assert many[-1]["x"] + many[-1]["width"] <= 720 and len({b["x"] for b in many}) == 256


def test_texts_are_escaped() -> None:
    report = replace(make(), source="<script>alert(1)</script>")
    assert "<script>" not in html(report) and "&lt;script&gt;" in html(report)
    assert "used &lt;b&gt;twice&lt;/b&gt;" in html(report)


def test_the_verdict_follows_the_figures() -> None:
    good, bad = make(), make(seed=-1)
    assert verdict(good) == "Equal to the untouched model, every expert reached" and verdict(good) in html(good)
    assert verdict(bad).startswith("Not equal") and "verdict bad" in html(bad) and "verdict bad" not in html(good)


def test_markdown_has_the_tables() -> None:
    report = replace(make(), artefacts=(Artefact("model.onnx", "ab" * 32, 1234),))
    text = markdown(report)
    for part in ("| logits |", "| blocks.1 | 4/4 | – |", "| fuse-moe | exact | 2 |", "| model.onnx | 1,234 |", "used <b>twice</b>"):
        assert part in text
    widths = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith(("| logits", "| output"))]
    assert len(set(widths)) == 1


def test_facts_of_any_shape_become_a_table() -> None:
    rows, columns = block_table([{"module": "a", "kernel": "MoE"}, {"module": "b", "why": "wide"}])
    assert columns == ["module", "kernel", "why"] and rows == [["a", "MoE", ""], ["b", "", "wide"]]
