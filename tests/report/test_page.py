"""The page shows the figures, escapes what it is given, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moec.proof.checks.decided import DecidedTokens
from moec.proof.checks.experts import ExpertsReached
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.text import TextQuality
from moec.proof.coverage import ExpertLoad
from moec.proof.damage_by_cause import ExpertShift
from moec.proof.decided_tokens import Decided
from moec.proof.exam import Exam
from moec.report.artefacts import Artefact
from moec.report.page import block_table, html, markdown, proof_note, section_of, verdict
from moec.report.report import Report
from moec.report.size import Sizes
from tests.report.test_report import INSIDE, QUALITY, make, with_check
from tests.report.test_speed import SPEED


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
    partly = with_check(report, ExpertsReached(replace(report.coverage, loads=(load,))))
    assert html(partly).count('class="missed"') == 1 and "not reached: 1" in html(partly)
    assert Tags(html(partly)).counts["tr"] == Tags(html(report)).counts["tr"] + 2  # a head, and the block that failed
    assert not partly.ok and "1 of 3 experts were reached by none" in verdict(partly)


def test_the_quality_is_drawn() -> None:
    plain, report = make(), with_check(make(), TextQuality(QUALITY))
    tags, text = Tags(html(report)), html(report)
    assert tags.counts["polyline"] == 3 and tags.counts["circle"] == 6 and tags.counts["rect"] == 8 + 2 * 2 * 2
    assert "polyline points" not in html(plain)
    for part in (
        "Quality on text",
        "prose.txt",
        "mean 0.02, 99 % 0.3, max 1.5",
        "blocks.1: 93.00%",
        "blocks.1: 4.00e-02",
        "1,000, source 4,000",
        "0.02, 0.05 allowed",
    ):
        assert part in text
    assert tags.loads == [] and all(
        p in markdown(report) for p in ("| blocks.0 | 96.00 % | 93.00 % |  |", "| blocks.1 |  |  | 4.00e-02 |")
    )


def test_charts_say_in_words_what_they_show() -> None:
    text = html(with_check(make(), TextQuality(QUALITY)))
    for part in ("the same sets: 93.00%", "error: 2.00e-02 to 4.00e-02", "tokens of each expert: 4"):
        assert part in text
    assert text.count("<svg") == text.count('role="img" aria-label="') and "<details><summary>" in text


def test_layers_are_drawn_without_a_text_too() -> None:
    report = replace(make(), layers=INSIDE)
    text = html(report)
    assert "Error of each layer" in text and "blocks.1: 4.00e-02" in text and "an input of the proof" in text
    assert "Error of each layer" not in html(make()) and "| blocks.1 |  |  | 4.00e-02 |" in markdown(report)
    assert Report.from_json(report.to_json()).layers == INSIDE


def test_the_size_is_shown_before_and_after() -> None:
    files = (Artefact("model.onnx", "ab" * 32, 2 * 2**20),)
    report = replace(make(), artefacts=files, size=Sizes(10**6, 8 * 2**20, 10**6, 250_000, 2, (8,), (2,)))
    text = html(report)
    for part in ("2.00 MiB", "4.0 times smaller than the model&#39;s 8.00 MiB", "1.00 M", "250 K active a token (25%)"):
        assert part in text, part
    assert "the model as it came: 8.00 MiB; the engine: 2.00 MiB" in text and "active a token" not in html(make())
    assert Report.from_json(report.to_json()).size == report.size


def test_the_speed_is_shown_where_it_was_measured() -> None:
    text = html(make(), [SPEED])
    for part in (
        "How fast it is",
        "A processor, 2 cores",
        "100.0",
        "tokens/s",
        "Time of each further token",
        "30.0 MiB",
    ):
        assert part in text, part
    assert text.count('class="run"') == 4 and "How fast it is" not in html(make())


def test_how_to_run_it_and_how_to_make_it_again_are_there() -> None:
    report = replace(make(), source="mixtral/", source_hashes={"config.json": "ab" * 32})
    text = html(report)
    for part in ("moec run .", "moec.load(&#34;.&#34;)", "moec compile --from moec.json", "--pass fuse-moe", "torch"):
        assert part in text, part
    assert "made in memory" in html(make()) and "--from moec.json" not in html(make())


def test_no_row_is_nonsense() -> None:
    """Keys and values have no likeliest element; a row for each of them says nothing."""
    found = make().comparison
    cache = [replace(found.worst, name=f"present.{k}.key", top1=None, top1_undecided=None) for k in range(24)]
    worst = replace(cache[7], deviation=1e-4)
    outputs = (found.worst, *cache[:7], worst, *cache[8:])
    section = section_of(Outputs(replace(found, outputs=outputs)))
    assert [row[0] for row in section.rows] == ["logits", "present.7.key, the worst of 24 tensors of the cache"]
    assert section.columns[-1] == "top-1" and section.rows[1][1][-1] == "–"
    wrong = replace(cache[3], deviation=9.0)
    rows = section_of(Outputs(replace(found, outputs=(*outputs, wrong)))).rows
    assert [row[2] for row in rows] == [True, True, False] and rows[2][0] == "present.3.key"
    only = section_of(Outputs(replace(found, outputs=(worst,))))
    assert "top-1" not in only.columns and only.rows[0][0] == "present.7.key"


def test_the_cause_of_the_damage_is_shown() -> None:
    shift = ExpertShift(60, 0.012, 0.004, 0.02)
    plain, report = (
        with_check(make(), TextQuality(QUALITY)),
        with_check(make(), TextQuality(replace(QUALITY, shift=shift))),
    )
    tags = Tags(html(report))
    assert tags.counts["rect"] == Tags(html(plain)).counts["rect"] + 3
    assert "What the damage comes from" not in html(plain)
    for text in (html(report), markdown(report)):
        assert "weights alone 0.012, changed choices alone 0.004, both 0.02" in text
    assert "weights alone 0.012" in str(report.quality) and "weights alone" not in str(plain.quality)


def test_what_passes_say_of_their_work_is_shown() -> None:
    rows = [{"module": "blocks.<0>", "calibrated": True, "identical_before": 0.81, "identical_after": 0.92345678}]
    facts = {
        "blocks": rows,
        "kinds": {"experts": {"kept": 0, "grids": ["4 bit", "8 bit"]}},
        "bytes": 7,
        "empty": [],
        "names": ["a"],
    }
    step = {**make().steps[0], "name": "calibrate-router(floor=9)", "facts": facts}
    text = html(replace(make(), steps=(step,)))
    for part in (
        "Routers fitted anew",
        "blocks.&lt;0&gt;: 92.35%",
        "calibrate-router: blocks",
        "<td>0.9235",
        "<td>yes",
        "calibrate-router: kinds",
        "4 bit, 8 bit",
    ):
        assert part in text
    assert (
        "calibrate-router: empty" not in text
        and "calibrate-router: names" not in text
        and "Routers fitted anew" not in html(make())
    )
    assert "| experts | 0 | 4 bit, 8 bit |" in markdown(replace(make(), steps=(step,)))


def test_texts_are_escaped() -> None:
    report = replace(make(), source="<script>alert(1)</script>")
    assert "<script>" not in html(report) and "&lt;script&gt;" in html(report)
    assert "used &lt;b&gt;twice&lt;/b&gt;" in html(report)


def test_what_steers_a_terminal_is_spelled_out() -> None:
    report = replace(make(), source="a\x1b[2J\u202eb", environment={"x\x07": "y\n| **equal** |"})
    for text in (html(report), markdown(report)):
        assert not set(text) & {"\x1b", "\x07", "\u202e"} and "a\\x1b[2J\\u202eb" in text
    assert "| x\\x07 | y\\n\\| **equal** \\| |" in markdown(report)


def test_the_template_lies_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moec" / "report").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "<html" in html(make())


def test_the_verdict_follows_the_figures() -> None:
    good, bad = make(), make(seed=-1)
    assert verdict(good) == "Equal to the untouched model, every expert reached" and verdict(good) in html(good)
    assert (
        verdict(bad).startswith("Not proven equal") and "verdict bad" in html(bad) and "verdict bad" not in html(good)
    )


def test_the_verdict_says_what_was_compared_where_not_everything_was() -> None:
    of_keys = with_check(make(), DecidedTokens(Decided("float32", 1e-5, 65, 385, what="keys")))
    assert "untouched model wherever rounding can tell keys apart (65 of 385 tokens), every" in verdict(of_keys)


def test_the_verdict_on_an_approximation() -> None:
    step = {**make().steps[0], "contract": "approximate"}
    close = replace(with_check(make(), TextQuality(QUALITY)), steps=(step,))
    assert verdict(close).startswith("Close to the untouched model: KL divergence 0.02")
    far = with_check(close, TextQuality(replace(QUALITY, exam=Exam("prose.txt", max_kl=0.01))))
    assert verdict(far).startswith("Not proven equal") and "0.01 allowed" in verdict(far) and "verdict bad" in html(far)


def test_markdown_has_the_tables() -> None:
    report = replace(make(), artefacts=(Artefact("model.onnx", "ab" * 32, 1234),))
    text = markdown(report)
    for part in (
        "| logits |",
        "| blocks.1 | 4 of 4 | – |",
        "| fuse-moe | exact | 2 |",
        "| model.onnx | 1,234 |",
        "used <b>twice</b>",
    ):
        assert part in text
    widths = [
        line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith(("| logits", "| output"))
    ]
    assert len(set(widths)) == 1


def test_facts_of_any_shape_become_a_table() -> None:
    rows, columns = block_table([{"module": "a", "kernel": "MoE"}, {"module": "b", "why": "wide"}])
    assert columns == ["module", "kernel", "why"] and rows == [["a", "MoE", ""], ["b", "", "wide"]]


def test_what_the_backend_says_of_attention_is_shown() -> None:
    shown = html(replace(make(), facts={"attention": [{"node": "attention_3", "why": "sinks & all"}]}))
    assert "How attention runs" in shown and "attention_3" in shown and "sinks &amp; all" in shown
    assert "How attention runs" not in html(replace(make(), facts={}))


def test_who_ran_the_engine_for_the_proof_is_said_where_it_was_not_the_target() -> None:
    report = make()
    of_cuda = replace(report, settings={**report.settings, "target": "onnxruntime:cuda"})
    assert proof_note(report) == "" == proof_note(replace(report, facts={"verified_by": "onnxruntime:cpu"}))
    assert "verified by onnxruntime:cpu" in proof_note(replace(of_cuda, facts={"verified_by": "onnxruntime:cpu"}))
    assert proof_note(replace(of_cuda, facts={"verified_by": "onnxruntime:cuda,threads=2"})) == ""
    elsewhere = {**report.settings, "target": "tensorrt-rtx:sm86"}
    stood_in = replace(report, settings=elsewhere, facts={"verified_by": "onnxruntime"})
    assert "verified by onnxruntime" in proof_note(stood_in) and "moec verify" in proof_note(stood_in)
    assert "moec build" in proof_note(replace(stood_in, settings={**elsewhere, "build": False}))
    open_ = replace(stood_in, facts={"verified_by": "onnxruntime, otherwise", "unproven": ["how fast", "how exact"]})
    assert "verified by onnxruntime, otherwise, which" in proof_note(open_) and proof_note(open_).endswith(
        "; not proven: how fast; not proven: how exact"
    )
    assert proof_note(stood_in) in markdown(stood_in) and "which ran the graph that the engine is made from" in html(
        stood_in
    )


def test_the_backends_tables_are_in_the_text() -> None:
    report = replace(
        make(),
        facts={
            "blocks": [{"module": "blocks.0", "why": "few tokens"}],
            "profiles": [{"profile": "decode", "sequence": "1"}],
        },
    )
    text = markdown(report)
    assert "## How each block runs" in text and "| blocks.0 | few tokens |" in text and "| decode | 1 |" in text
    assert "few tokens" in html(report) and "Sizes that it is built for" in html(report)
