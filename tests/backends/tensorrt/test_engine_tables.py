from __future__ import annotations

from typing import Any

from moec.backends.tensorrt.edition import RTX
from moec.backends.tensorrt.engine_tables import cache_bytes, tables
from moec.targets.target import Target

BUILT: dict[str, Any] = {"version": "1.7", "layers": {"MATMUL": 3, "SOFTMAX": 1}, "messages": ["[W] slow"]}
CACHES = [[f"past_key_values.{n}.key", "float16", ["batch", 4, "past_sequence", 64]] for n in range(2)]
DESCRIBED = {"architectures": [], "settings": {"refit": "yes"}, "capacity": 1024, "inputs": CACHES}


def test_a_plan_that_no_gpu_has_measured() -> None:
    found = tables(RTX, BUILT, {"architectures": [86, 120]}, 3 << 20, Target.parse("tensorrt-rtx:sm86,sm120"))
    (row,) = found["engine"]
    assert row["architectures"] == "sm86, sm120" and row["layers"] == 4 and row["plan MiB"] == "3.0"
    assert "kernels" not in row and found["layers"][0] == {
        "layer": "matmul",
        "count": 3,
        "constants MiB": "0.0",
    }
    assert found["messages"] == ["[W] slow"]


def test_what_a_gpu_says_is_shown() -> None:
    said = [{"name": "gemm", "layertype": "gemm", "tacticname": "sm90_x"}]
    built = {
        **BUILT,
        "memory_bytes": [1 << 20, 5 << 19],
        "kernels": 7,
        "plan_layers": said,
        "constants": {"MATMUL": 5 << 19},
    }
    found = tables(RTX, built, DESCRIBED, 0, Target.parse("tensorrt-rtx:workspace=64"))
    assert found["plan_layers"] == said and found["layers"][0]["constants MiB"] == "2.5"
    (row,) = tables(RTX, built, DESCRIBED, 0, Target.parse("tensorrt-rtx:workspace=64"))["engine"]
    assert row["architectures"] == "all that the library knows" and row["workspace MiB"] == "64"
    assert row["kernels"] == 7 and row["intermediates MiB, by profile"] == "1.0, 2.5"
    assert row["refit"] == "yes" and row["constants MiB"] == "2.5", "settings are in the manifest"
    assert row["cache MiB, a text"] == "1.0" and cache_bytes(DESCRIBED) == 2 * 4 * 1024 * 64 * 2
