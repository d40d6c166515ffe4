"""Every matrix split over devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.shape import Shape, State
from moec.planning.step import time_of
from moec.planning.tensor import HOP, exchanged, part_of, sent_bytes, split, tensor_time
from moec.planning.work import Work
from tests.planning.shapes import dense, mixture

H200, BF16 = devices()["h200"], FORMATS["bf16"]
WORK = Work(mixture(64, 4, 16), BF16, 64, 1024)


def packed(shape: Shape) -> Shape:
    """In 4 bits with a scale for 16 numbers."""
    return replace(
        shape, tensors=tuple(replace(t, codes=t.count // 2, scales=t.count // 16) for t in shape.tensors)
    )  # fmt: skip


@pytest.mark.parametrize("shape", [mixture(), dense(), packed(mixture())])
def test_parts_make_up_the_whole(shape: Shape) -> None:
    part = split(shape, 4)
    whole = {t.name: t for t in shape.tensors}
    for tensor in part.tensors:
        times, all_of_it = 1 if tensor.part == "router" else 4, whole[tensor.name]
        assert tensor.count * times == all_of_it.count, tensor.name
        assert (tensor.codes * times, tensor.scales * times) == (all_of_it.codes, all_of_it.scales), tensor.name
    assert split(shape, 1) == shape and part.heads == 4 and part.states[0].per_token == 2 * 64
    assert [m.intermediate for m in part.mixtures] == [512] * len(shape.mixtures)


def test_heads_are_whole_and_the_device_with_most_counts() -> None:
    """28 heads on 8 devices: three on some, four on others; 4 of keys, one on each; 6 of keys on 4 devices: two."""
    odd = replace(mixture(), heads=28, states=(State("keys and values", 2 * 6 * 64),))
    assert split(odd, 8).heads == 4 and split(mixture(), 8).states[0].per_token == 2 * 64
    assert split(odd, 4).states[0].per_token == 2 * 2 * 64


def test_matrices_after_the_middle_are_split_by_columns() -> None:
    sizes = {t.name: t.shape for t in split(mixture(), 2).tensors}
    assert sizes["layers.0.self_attn.q_proj.weight"] == (512, 1024)
    assert sizes["layers.0.self_attn.o_proj.weight"] == (1024, 512)
    assert sizes["layers.0.experts.gate_up_proj"] == (8, 2048, 1024)
    assert sizes["layers.0.experts.down_proj"] == (8, 1024, 1024)


def test_a_latent_cache_and_the_last_head_of_keys_are_whole_on_every_device() -> None:
    plain = mixture()
    latent = Shape(**{**vars(plain), "states": (State("compressed keys and values", 576),)})
    assert split(latent, 8).states == latent.states
    assert split(plain, 16).states[0].per_token == 2 * 64


def test_a_part_does_its_share_of_the_work() -> None:
    whole, part = WORK.step, part_of(WORK, 4).step
    assert part.weight_bytes == pytest.approx(whole.weight_bytes / 4, rel=0.01)
    assert part.flops == pytest.approx(whole.flops / 4, rel=0.01) and part.state_bytes == whole.state_bytes / 4


def test_what_is_exchanged() -> None:
    assert exchanged(WORK) == (32, 64 * 1024)
    assert sent_bytes(WORK, 8) == pytest.approx(32 * 64 * 1024 * 2 * 2 * 7 / 8) and sent_bytes(WORK, 1) == 0


def test_more_devices_are_faster_until_exchanges_take_the_time() -> None:
    assert tensor_time(WORK, H200, 1) == time_of(WORK.step, H200, BF16)
    alone, two, eight = (tensor_time(WORK, H200, n).high for n in (1, 2, 8))
    assert alone > two > eight > 2 * 16 * HOP[1]
    assert tensor_time(WORK, devices()["l40s"], 8).high > tensor_time(WORK, H200, 8).high
