"""Weights in 8-bit floats with a scale a tile become the numbers that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.formats.fp8 import Fp8, decode
from moec.weights.lazy import from_tensor

HEIGHT, WIDTH = 20, 27  # neither is a multiple of the tile


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(HEIGHT, WIDTH, generator=generator).to(torch.float8_e4m3fn)
    return {
        "a.weight": weight,
        "a.weight_scale_inv": torch.rand(3, 4, generator=generator) + 0.5,
        "norm.weight": torch.ones(5),
    }


def test_every_number_is_multiplied_by_its_tiles_scale() -> None:
    stored = tensors()
    found = decode({n: from_tensor(t, n) for n, t in stored.items()}, (8, 8))
    assert set(found) == {"a.weight", "norm.weight"} and found["a.weight"].dtype == torch.float32
    value, scale = stored["a.weight"].float(), stored["a.weight_scale_inv"]
    wanted = torch.stack(
        [torch.stack([value[r, c] * scale[r // 8, c // 8] for c in range(WIDTH)]) for r in range(HEIGHT)]
    )
    assert torch.equal(found["a.weight"].load(), wanted)
    assert all(torch.equal(found["a.weight"].read(a, b), wanted[a:b]) for a, b in [(0, 1), (5, 17), (7, 9), (16, 20)])
    turned = decode(
        {**{n: from_tensor(t, n) for n, t in stored.items()}, "a.weight_scale_inv": from_tensor(scale.flip(0), "s")},
        (8, 8),
    )
    assert not torch.equal(turned["a.weight"].load(), wanted)


@pytest.mark.parametrize(
    "scale",
    [
        None,
        torch.ones(3, 3),
        torch.ones(12),
        torch.ones(3, 4, dtype=torch.int32),
        torch.ones(3, 4).to(torch.float8_e4m3fn),
    ],
)
def test_scales_that_do_not_fit(scale: torch.Tensor | None) -> None:
    stored = {n: from_tensor(t, n) for n, t in {**tensors(), "a.weight_scale_inv": scale}.items() if t is not None}
    with pytest.raises(MoecError) as caught:
        decode(stored, (8, 8))
    assert caught.value.code == "M205" and "a.weight" in caught.value.what


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"weight_block_size": [8, 8]}, ""),
        ({}, "weight_block_size"),
        ({"weight_block_size": [8]}, "[8]"),
        ({"weight_block_size": [8, 8], "fmt": "e5m2"}, "e5m2"),
    ],
)
def test_which_are_read(config: dict[str, Any], words: str) -> None:
    assert words in Fp8().why_not(config) and bool(Fp8().why_not(config)) is bool(words)
    if not words:
        assert Fp8().decode({n: from_tensor(t, n) for n, t in tensors().items()}, config)["a.weight"].shape == (
            HEIGHT,
            WIDTH,
        )


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("factor", [1.0, 2.0**-130, 2.0**101, 2.0**125, float("inf")])
def test_every_code_is_what_pytorch_says(factor: float, nan: bool) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    codes[:, [0x7F, 0xFF]] = 0x7F if nan else 0x7E
    stored = {"w": codes.view(torch.float8_e4m3fn), "w_scale_inv": torch.tensor([[1.0, 1.7, 3e-3]]) * factor}
    found = decode({n: from_tensor(t, n) for n, t in stored.items()}, (8, 100))["w"].load()
    wanted = stored["w"].float() * stored["w_scale_inv"].repeat_interleave(100, 1)[:, :256]
    assert torch.equal(found.isnan(), wanted.isnan()) and bool(found.isnan().any()) == (nan or factor == float("inf"))
    assert torch.equal(found.nan_to_num(5.0).view(torch.int32), wanted.nan_to_num(5.0).view(torch.int32)), "signs, too"
    wrong = wanted.nan_to_num(5.0) * (1 + 2.0**-23)
    assert not torch.equal(found.nan_to_num(5.0), wrong)
