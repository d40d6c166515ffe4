"""A linear attention as a Scan of standard operators against `moec::linear_attention`, in every form that the dialect
has; decoders with such states become TensorRT graphs that equal untouched eager."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moec
from moec.backends.tensorrt.graph.linear_attention import lower_linear_attention
from tests.backends.onnxruntime.attention.test_linear import (
    HEADS,
    RULES,
    check_half_precision,
    check_lengths,
    check_units,
)
from tests.backends.tensorrt.tiny import needs_rtx
from tests.scanning_models import scanning_model

STANDARD = {""}


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_every_length_rule_and_number_of_heads(rule: str, heads: tuple[int, int]) -> None:
    for model, fact in check_lengths(lower_linear_attention, rule, heads, (1, 2, 65)):
        assert fact["formulation"] == "Scan" and {node.domain for node in model.graph.all_nodes()} == STANDARD


def test_queries_and_keys_are_brought_to_one_length() -> None:
    check_units(lower_linear_attention)


def test_half_precision_is_computed_in_float32() -> None:
    check_half_precision(lower_linear_attention)


@needs_rtx
@pytest.mark.parametrize("name", ["minimax", "jamba"])
def test_a_decoder_with_such_states_is_built_and_proven(name: str, tmp_path: Path) -> None:
    scanning_model(name).save_pretrained(tmp_path / "model")
    moec.compile(tmp_path / "model", target="tensorrt-rtx:sm89,max_sequence=40", out=tmp_path / "engine")
    manifest = json.loads((tmp_path / "engine" / "moec.json").read_text())
    layers = {row["layer"]: row["count"] for row in manifest["facts"]["layers"]}
    assert layers["recurrence"] >= 1, "the library's own loop"
