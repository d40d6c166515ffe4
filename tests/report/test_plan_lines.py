"""Lines about a plan, from what its build recorded."""

from __future__ import annotations

from moec.report.plan_lines import plan_lines, plan_of

FACTS = {
    "engine": [{"library": "TensorRT-RTX 1.7", "plan MiB": "3.0", "constants MiB": "2.5"}],
    "profiles": [{"profile": "decode", "sequence": "1"}, {"profile": "prefill", "sequence": "1 … 64"}],
    "layers": [{"layer": "matrix_multiply", "count": 2}, {"layer": "constant", "count": 3, "constants MiB": "2.5"}],
    "blocks": [],
}


def test_bytes_profiles_and_layers() -> None:
    assert plan_lines("out", FACTS) == [
        "out: library TensorRT-RTX 1.7, plan MiB 3.0, constants MiB 2.5",
        "  profile decode, sequence 1",
        "  profile prefill, sequence 1 … 64",
        "  layers: 2 matrix_multiply, 3 constant (2.5 MiB)",
    ]
    assert set(plan_of(FACTS)) == {"engine", "profiles", "layers"}


def test_engines_that_are_no_plans_have_none() -> None:
    for facts in ({}, {"blocks": [], "layers": [{"layer": "x", "count": 1}]}):
        assert plan_lines("out", facts) == [] and plan_of(facts) == {}
