"""Files hold every time, and pictures a dot for each."""

from __future__ import annotations

import csv
import io
import json
from xml.etree import ElementTree

import pytest

from moec.timing.benchmark import Benchmark
from moec.timing.decoders import bench_decoders
from moec.timing.export import exported
from tests.timing.test_decoders import Sleeper


@pytest.fixture(scope="module")
def found() -> Benchmark:
    engines = [Sleeper("a <b>", 0.0005, []), Sleeper("b,c", 0, [])]
    return bench_decoders(engines, {"sequence": 2}, max_tokens=3, runs=2)


def test_csv_has_a_row_a_time(found: Benchmark) -> None:
    rows = list(csv.DictReader(io.StringIO(exported(found, ".csv"))))
    assert len(rows) == 2 * 2 * 3 and {r["engine"] for r in rows} == {"a <b>", "b,c"}
    assert [r["phase"] for r in rows[:3]] == ["prefill", "decode", "decode"]
    assert float(rows[0]["ms"]) == pytest.approx(found.moments[0].ms, rel=1e-4)


def test_json_has_everything(found: Benchmark) -> None:
    plain = json.loads(exported(found, ".json"))
    assert len(plain["moments"]) == len(found.moments) and plain["where"]["versions"]["torch"]
    assert plain["timings"][0]["engine"] == "a <b>" and plain["sizes"]["new"] == 3


def test_a_picture_has_a_dot_a_time_and_loads_nothing(found: Benchmark) -> None:
    picture = exported(found, ".svg")
    tree = ElementTree.fromstring(picture)
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}circle"))) == len(found.moments)
    page = exported(found, ".html")
    assert page.count('<circle class="run"') == len(found.moments) and "a &lt;b&gt;" in page and "a <b>" not in page
    for text in (picture, page):
        assert "<script" not in text and "url(" not in text and "href" not in text
    assert found.where.machine in page and "tokens/s" in page
