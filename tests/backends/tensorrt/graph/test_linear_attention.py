"""A linear attention as a Scan of standard operators against `moec::linear_attention`, in every form that the dialect
has; decoders with such states become TensorRT graphs that equal untouched eager."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import moec
from moec.backends.tensorrt.graph.linear_attention import lower_linear_attention
from tests.backends.onnxruntime.attention.test_linear import LIMIT, RULES, difference, given, run
from tests.backends.onnxruntime.attention.test_linear import lowered as lowered_by
from tests.backends.tensorrt.tiny import needs_rtx
from tests.scanning_models import scanning_model

lowered = partial(lowered_by, lower=lower_linear_attention)
STANDARD = {""}


@pytest.mark.parametrize("heads", [(4, 4), (2, 4), (1, 3)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_every_length_rule_and_number_of_heads(rule: str, heads: tuple[int, int]) -> None:
    for by_channel in [False, True] if "decay" in RULES[rule] else [False]:
        model, fact = lowered(given(5, rule, heads, by_channel), scale=0.3, epsilon=0.0)
        assert fact["formulation"] == "Scan" and {node.domain for node in model.graph.all_nodes()} == STANDARD
        for length in (1, 2, 65):
            tensors = given(length, rule, heads, by_channel, batch=1 + length % 3)
            got = run(model, tensors)
            assert difference(got, tensors, scale=0.3, epsilon=0.0) < LIMIT
            assert difference(got, tensors, scale=0.31, epsilon=0.0) > 100 * LIMIT, "the scale matters"
            assert difference(got, {**tensors, "state": tensors["state"] * 1.1}, scale=0.3) > 100 * LIMIT


def test_queries_and_keys_are_brought_to_one_length() -> None:
    tensors = given(7, "gated_delta", (2, 4))
    tensors |= {"query": tensors["query"] * 7, "key": tensors["key"] * 0.01}
    tensors["key"][1, :3] = 0.0  # padding
    got = run(lowered(tensors, scale=0.3, epsilon=1e-6)[0], tensors)
    assert difference(got, tensors, scale=0.3, epsilon=1e-6) < LIMIT
    assert difference(got, tensors, scale=0.3, epsilon=1e-4) > 100 * LIMIT


def test_half_precision_is_computed_in_float32() -> None:
    half = {n: t.half() if n in ("query", "key", "value") else t for n, t in given(70, "gated_delta", (2, 4)).items()}
    got = run(lowered(half, scale=0.3, epsilon=1e-6)[0], half)
    assert difference(got, half, scale=0.3, epsilon=1e-6) < 1e-3, "one rounding"


@needs_rtx
@pytest.mark.parametrize("name", ["minimax", "jamba"])
def test_a_decoder_with_such_states_is_built_and_proven(name: str, tmp_path: Path) -> None:
    scanning_model(name).save_pretrained(tmp_path / "model")
    moec.compile(tmp_path / "model", target="tensorrt-rtx:sm89,max_sequence=40", out=tmp_path / "engine")
    manifest = json.loads((tmp_path / "engine" / "moec.json").read_text())
    layers = {row["layer"]: row["count"] for row in manifest["facts"]["layers"]}
    assert layers["recurrence"] >= 1, "the library's own loop"
