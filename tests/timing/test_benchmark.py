"""A table is as wide as its cells, and JSON has no NaN."""

from __future__ import annotations

import json

from moec.timing.benchmark import ratio_cells, with_figures
from moec.timing.engines import bench_engines
from moec.timing.ratio import SURE, Ratio, of_first
from tests.timing.test_engines import Sleeper


def test_columns_are_as_wide_as_their_cells() -> None:
    lines = with_figures([("engine", "ms"), ("a", "1.25"), ("folder/" * 9 + "end", "12.5")])
    assert len({len(line) for line in lines}) == 1 and lines[2].startswith("…") and "folder/end" in lines[2]
    assert lines[1].endswith("  1.25")


def test_what_is_not_known_is_a_dash() -> None:
    few = Ratio(1.5, float("nan"), float("nan"), SURE, 2)
    assert ratio_cells(few) == ("1.50", "–") and ratio_cells(of_first(2)) == ("1.00", "")
    assert ratio_cells(Ratio(1.5, 1.25, 1.75, SURE, 9)) == ("1.50", "1.25–1.75")


def test_there_is_a_table_a_phase_and_one_of_the_memory() -> None:
    found = bench_engines([Sleeper("a", 0, []), Sleeper("b", 0, [])], sizes={"sequence": 2}, runs=2, warmup=1)
    forward, memory = found.tables()
    assert forward.title == "forward, time of a forward pass" and "tokens/s" in forward.columns
    assert [row[0] for row in forward.rows] == ["a", "b"] and memory.rows[0][1] == "–" and "iB" in memory.rows[0][2]
    assert max(map(len, str(found).splitlines()[4:])) <= 80  # below the line of the versions


def test_plain_data_is_json() -> None:
    found = bench_engines([Sleeper("a", 0, []), Sleeper("b", 0, [])], sizes={"sequence": 2}, runs=2, warmup=1)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["kind"] == "forward" and plain["timings"][1]["ratio"]["low"] is None
    assert plain["timings"][1]["verdicts"] == {"forward": "too few runs"} and plain["where"]["cores"] >= 1
    assert "b: forward 2 runs are too few to tell: --runs 6 or more" in str(found)
