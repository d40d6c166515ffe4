"""Bytes, FLOPs and time of a step."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moec.huggingface.shape import shape_of, shape_of_model
from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.shape import Shape
from moec.planning.step import decode_step, prompt_step, time_of
from tests.planning import configs
from tests.zoo import build


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return shape_of(str(configs.write(tmp_path_factory.mktemp("mixtral"), configs.MIXTRAL)))


@pytest.mark.parametrize(("batch", "gigabytes"), [(1, 25.5), (4, 64.6), (8, 84.1), (32, 93.1)])
def test_a_mixture_reads_what_its_tokens_touch(mixtral: Shape, batch: int, gigabytes: float) -> None:
    step = decode_step(mixtral, FORMATS["bf16"], batch, 1)
    assert step.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=2e-3)


def test_at_batch_4_the_mixture_reads_more_a_token_than_the_dense_model_of_its_active_size(mixtral: Shape) -> None:
    a_token = decode_step(mixtral, FORMATS["bf16"], 4, 1).weight_bytes / 4
    assert 16.0e9 < a_token < 16.3e9 and a_token > 2 * mixtral.active_without_embedding / 4
    assert decode_step(mixtral, FORMATS["bf16"], 64, 1).weight_bytes / 64 < 2e9


def test_at_batch_1_most_experts_are_not_read(mixtral: Shape) -> None:
    step = decode_step(mixtral, FORMATS["bf16"], 1, 1)
    assert step.experts == pytest.approx(2)
    assert step.weight_bytes == pytest.approx(2 * mixtral.active_without_embedding, rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_flops_are_those_that_pytorch_counts(name: str) -> None:
    model, tokens = build(name, attn_implementation="eager"), 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones((1, tokens), dtype=torch.int64), logits_to_keep=1, use_cache=False)
    shape = shape_of_model(model)
    found = prompt_step(shape, FORMATS["fp32"], 1, tokens).flops
    masked = sum(4 * shape.heads * shape.head_size * (tokens**2 - pairs) for pairs in pairs_of(shape, tokens))
    # eager attention computes what it masks
    assert found + masked == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert found + masked != pytest.approx(1.05 * counter.get_total_flops(), rel=0.01)


def pairs_of(shape: Shape, tokens: int) -> list[float]:
    return [tokens * s.window - s.window**2 / 2 if s.window else tokens**2 / 2 for s in shape.states]


def test_the_bound_turns_from_memory_to_compute(mixtral: Shape) -> None:
    h200, bf16 = devices()["h200"], FORMATS["bf16"]
    one = time_of(decode_step(mixtral, bf16, 1, 1), h200, bf16)
    assert one.bound == "memory" and one.low < one.high
    assert one.low == pytest.approx(25.5e9 / 4.8e12 / 0.88, rel=0.01)
    assert time_of(prompt_step(mixtral, bf16, 1, 4096), h200, bf16).bound == "compute"


def test_four_bits_are_read_four_times_as_fast_and_multiplied_no_faster(mixtral: Shape) -> None:
    h200 = devices()["h200"]
    half, quarter = (time_of(decode_step(mixtral, FORMATS[n], 1, 1), h200, FORMATS[n]) for n in ("bf16", "int4"))
    assert 3.5 < half.low / quarter.low < 4
    half, quarter = (time_of(prompt_step(mixtral, FORMATS[n], 1, 4096), h200, FORMATS[n]) for n in ("bf16", "int4"))
    assert half.low == quarter.low


def test_the_interval_holds_what_others_measured_for_mixtral_at_one_token() -> None:
    """A layer of experts, 189 us on an H200; 37 us of Qwen3-30B's, whose bandwidth share is the lowest."""
    for us, experts, top_k, hidden, width in ((189, 8, 2, 4096, 14336), (37, 128, 8, 2048, 768)):
        read = top_k * 3 * hidden * width * 2
        low, high = (read / 4.8e12 / share * 1e6 for share in (0.88, 0.43))
        assert low <= us <= high * 1.02, (us, experts)
