"""The decision rules that circulate about dense models and mixtures, each with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moec.huggingface.shape import shape_of
from moec.planning.advice import RULES, advise
from moec.planning.devices import devices
from moec.planning.estimate import estimate
from moec.planning.load import Load
from moec.planning.question import Advice
from moec.planning.serving import Asked
from moec.planning.shape import Shape
from tests.planning import configs

pytestmark = pytest.mark.usefixtures("roofline_only")

_known: dict[str, Shape] = {}


def shape(tmp_path: Path, config: dict[str, Any]) -> Shape:
    """The shape of a config, built once."""
    key = json.dumps(config)
    if key not in _known:
        _known[key] = shape_of(str(configs.write(tmp_path, config)))
    return _known[key]


def advice(rule: str, *args: Any, **asked: Any) -> list[Advice]:
    found = advise(estimate(*args, **asked))
    assert {each.rule for each in found} <= set(RULES) and all(each.figures for each in found)
    return [each for each in found if each.rule == rule]


def test_decode_at_batch_4_is_memory_bound_and_the_mixture_reads_more(tmp_path: Path) -> None:
    """16 GB a token, the dense model that folklore calls as good 12; with 8,192 tokens behind each text 17 and 13."""
    mixtral = shape(tmp_path, configs.MIXTRAL)
    (short,) = advice("bound", mixtral, devices=("h200",), batches=(4,), context=1)
    assert short.verdict == "memory-bound" and "this mixture reads 16.2 GB a token" in short.text
    assert short.figures["bytes_of_other"] == pytest.approx(12.2e9, rel=0.01)
    (long,) = advice("bound", mixtral, devices=("h200",), batches=(4,), context=8192)
    assert "17.2 GB a token" in long.text and "13.3 GB" in long.text


def test_dense_or_mixture_depends_on_the_batch(tmp_path: Path) -> None:
    """Low batches and a bound by computing favour the mixture, those between the dense model of its quality."""
    mixtral = shape(tmp_path, configs.MIXTRAL)
    active, alike = advice("dense or mixture", mixtral, batches=(1, 4, 1024), context=1)
    assert active.verdict == "dense" and "both compute the same" in active.text
    assert alike.verdict == "depends on the batch" and alike.figures["turns_at_0"] == 3
    assert "this mixture is cheaper at batch 1, the other is cheaper at batch 4 and 1,024" in alike.text
    assert "the other computes 1.9 times as much" in alike.text
    (_, timed) = advice("dense or mixture", mixtral, ("int4",), ("h200",), (1, 4, 1024), 1)
    assert timed.figures["turns_at_1"] < 1024 and "at batch 1 and 1,024, the other" in timed.text


def test_a_named_model_takes_the_place_of_the_dense_twins(tmp_path: Path) -> None:
    mixtral, llama = shape(tmp_path, configs.MIXTRAL), shape(tmp_path, configs.LLAMA_70B)
    (found,) = advice("dense or mixture", mixtral, versus=llama)
    assert found.verdict == "mixture" and "LlamaForCausalLM (70.6 B)" in found.text
    (other,) = advice("dense or mixture", llama, versus=mixtral)
    assert other.verdict == "mixture" and other.figures["bytes"] == found.figures["bytes_of_other"]
    (same,) = advice("dense or mixture", mixtral, versus=mixtral)
    assert same.verdict == "alike"


def test_a_prompt_is_bound_by_computing_where_the_mixture_computes_less(tmp_path: Path) -> None:
    """Two FLOPs for each active parameter and token, and attention's: 4 x 32 layers x 32 heads x 128 x n^2 / 2."""
    (found,) = advice("prompt", shape(tmp_path, configs.MIXTRAL), devices=("h200",), context=8192)
    assert found.verdict == "compute-bound" and found.figures["flops_ratio"] == pytest.approx(1.85, abs=0.01)
    expected = 2 * (12_748_853_248 - 131_072_000) * 8192 + 4 * 32 * 32 * 128 * 8192**2 / 2
    assert found.figures["flops"] == pytest.approx(expected, rel=1e-3) and "0.28–0.63 s" in found.text
    (short,) = advice("prompt", shape(tmp_path, configs.MIXTRAL), devices=("h200",), context=16)
    assert short.verdict == "memory-bound"


def test_a_mixture_is_bound_by_computing_only_at_many_times_the_batch(tmp_path: Path) -> None:
    """A dense layer at the ridge, 206 FLOPs a byte on an H200; experts at that times E / k: 824 for 2 of 8."""
    (dense,) = advice("turns", shape(tmp_path, configs.LLAMA_1B), devices=("h200",), context=1)
    (mixture,) = advice("turns", shape(tmp_path, configs.MIXTRAL), devices=("h200",), context=1)
    assert dense.figures["ridge_flops_a_byte"] == pytest.approx(206, abs=0.1)
    assert dense.figures["batch"] == pytest.approx(206, rel=0.1)
    assert mixture.figures["batch"] == pytest.approx(206 * 8 / 2, rel=0.1) and "2 of 8" in mixture.text
    (never,) = advice("turns", shape(tmp_path, configs.MIXTRAL), devices=("h200",), context=8192)
    assert never.verdict == "never" and "1.07 GB of its own state" in never.text


@pytest.mark.parametrize(
    ("name", "device", "rate"), [("int8", "h200", 989), ("nvfp4", "b200", 9000), ("mxfp4", "b200", 9000)]
)
def test_the_ridge_is_that_of_the_times(tmp_path: Path, name: str, device: str, rate: float) -> None:
    """Integers are unpacked to 16 bits; small floats are multiplied as they are."""
    (found,) = advice("turns", shape(tmp_path, configs.LLAMA_1B), (name,), (device,), context=1)
    known = devices()[device]
    assert rate * 1e12 == known.flops(16 if name == "int8" else 4)
    assert found.figures["ridge_flops_a_byte"] == pytest.approx(rate * 1e3 / known.bandwidth)


def test_nothing_is_said_where_the_figure_is_not_known(tmp_path: Path) -> None:
    mixtral = shape(tmp_path, configs.MIXTRAL)
    assert advice("bound", mixtral) == [] and advice("turns", mixtral) == [] and advice("fits", mixtral) == []
    assert advice("bound", mixtral, devices=("rtx4090",)) == []  # no such device holds it
    bert = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "num_attention_heads": 12}
    said = advise(estimate(shape(tmp_path, bert), devices=("h200",), context=128))
    assert [each.rule for each in said] == ["prompt"]
    assert advise(estimate(shape(tmp_path, bert), context=128)) == ()


def test_experts_on_devices_beside_tensor_parallelism(tmp_path: Path) -> None:
    """2 experts of 8 send as much as two all-reduces, 8 of 128 more, whatever their size."""
    (mixtral,) = advice("ranks", shape(tmp_path, configs.MIXTRAL), ranks=(8,))
    assert mixtral.verdict == "neither" and "lie on 2.0 of them" in mixtral.text
    (qwen,) = advice("ranks", shape(tmp_path, configs.QWEN3_30B), ranks=(8,))
    assert qwen.verdict == "tensor parallelism"
    assert qwen.figures["bytes"] > 2 * qwen.figures["tensor_parallel_bytes"]


def test_a_load_that_is_not_even_has_hot_experts_and_touches_fewer(tmp_path: Path) -> None:
    """By a power law the first of 8 takes 1 / (1 + 1/2 + ... + 1/8) of the choices, 2.9 times the mean."""
    mixtral = shape(tmp_path, configs.MIXTRAL)
    (hot,) = advice("hot experts", mixtral, batches=(4,), asked=Asked(load=Load("zipf:1.0", 1.0)))
    assert hot.figures["ratio"] == pytest.approx(8 / sum(1 / n for n in range(1, 9)))
    assert hot.figures["experts"] < hot.figures["experts_if_even"] == pytest.approx(5.47, abs=0.01)
    assert advice("hot experts", mixtral) == []
