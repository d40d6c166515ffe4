from __future__ import annotations

from typing import Any

from moec.backends.tensorrt.edition import RTX
from moec.backends.tensorrt.engine_tables import tables
from moec.targets.target import Target

BUILT: dict[str, Any] = {"version": "1.7", "layers": {"MATMUL": 3, "SOFTMAX": 1}, "messages": ["[W] slow"]}


def test_a_plan_that_no_gpu_has_measured() -> None:
    found = tables(RTX, BUILT, [86, 120], 3 << 20, Target.parse("tensorrt-rtx:sm86,sm120"))
    (row,) = found["engine"]
    assert row["architectures"] == "sm86, sm120" and row["layers"] == 4 and row["plan MiB"] == "3.0"
    assert "kernels" not in row and found["layers"][0] == {"layer": "matmul", "count": 3}
    assert found["messages"] == ["[W] slow"]


def test_what_a_gpu_says_is_shown() -> None:
    built = {**BUILT, "memory_bytes": [1 << 20, 5 << 19], "kernels": 7}
    (row,) = tables(RTX, built, [], 0, Target.parse("tensorrt-rtx:workspace=64"))["engine"]
    assert row["architectures"] == "all that the library knows" and row["workspace MiB"] == "64"
    assert row["kernels"] == 7 and row["intermediates MiB, by profile"] == "1.0, 2.5"
