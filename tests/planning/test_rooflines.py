"""The shortest times of single kernels."""

from __future__ import annotations

import numpy as np
import pytest

from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.rooflines import (
    LAUNCH,
    absorbed_floor,
    attention_floor,
    experts_floor,
    latent_floor,
    matrix_floor,
    prompt_floor,
)

H200, BF16 = devices()["h200"], FORMATS["bf16"]


def test_small_products_read_and_large_ones_compute() -> None:
    one, many = matrix_floor(H200, BF16)(np.array([[1.0, 4096, 4096], [8192, 4096, 4096]]))
    assert one == pytest.approx(2 * 4096 * (4096 + 2) / 4.8e12 + LAUNCH)
    assert many == pytest.approx(2 * 8192 * 4096**2 / 989e12 + LAUNCH)


def test_four_bits_read_a_quarter_with_their_scales() -> None:
    size = np.array([[1.0, 8192, 8192]])
    half, quarter = (matrix_floor(H200, FORMATS[f])(size)[0] - LAUNCH for f in ("bf16", "int4"))
    assert half / quarter == pytest.approx(16 / 4.25, rel=0.01)


def test_experts_read_what_is_touched() -> None:
    floor = experts_floor(H200, BF16)
    two, eight = floor(np.array([[1.0, 4096, 14336, 2, 8, 2, 3], [64, 4096, 14336, 2, 8, 8, 3]])) - 3 * LAUNCH
    assert eight / two == pytest.approx(4) and two == pytest.approx(2 * 3 * 4096 * 14336 * 2 / 4.8e12)


def test_attention_reads_its_cache_and_computes_its_prompts() -> None:
    assert attention_floor(H200)(np.array([[1.0, 1000, 32, 8, 128]]))[0] == pytest.approx(
        2 * 1000 * 8 * 128 * 2 / 4.8e12 + LAUNCH
    )
    assert prompt_floor(H200)(np.array([[1.0, 16384, 32, 8, 128]]))[0] == pytest.approx(
        2 * 16384**2 * 32 * 128 / 989e12 + LAUNCH
    )


def test_latent_attention_reads_576_numbers_a_token() -> None:
    few = latent_floor(H200, False)(np.array([[1.0, 100000, 1]]))[0]
    assert few == pytest.approx(100000 * 576 * 2 / 4.8e12 + LAUNCH)
    whole = latent_floor(H200, True)(np.array([[1.0, 16384, 128]]))[0]
    assert whole == pytest.approx(16384**2 * 128 * (192 + 128) / 989e12 + LAUNCH)
    assert absorbed_floor(H200)(np.array([[1.0, 128]]))[0] == pytest.approx(2 * 128 * 128 * 512 / 4.8e12 + LAUNCH)
