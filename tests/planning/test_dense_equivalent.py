"""The two rules, at the figures that were recomputed from their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec.huggingface.shape import shape_of
from moec.planning.dense_equivalent import dense_equivalent
from tests.planning import configs


@pytest.mark.parametrize(
    ("config", "by_cost", "by_quality"),
    [
        (configs.MIXTRAL, 28.9e9, 24.5e9),
        (configs.MIXTRAL_22B, 87e9, 74.2e9),
        (configs.QWEN3_30B, 13.4e9, 10.1e9),
        (configs.QWEN3_235B, 103e9, 72e9),
        (configs.DEEPSEEK_V3, 217e9, 159e9),
    ],
)
def test_published_figures(config: dict[str, Any], by_cost: float, by_quality: float, tmp_path: Path) -> None:
    found = dense_equivalent(shape_of(str(configs.write(tmp_path, config))))
    assert found is not None
    assert found.by_cost == pytest.approx(by_cost, rel=6e-3)
    assert found.by_quality == pytest.approx(by_quality, rel=6e-3)


def test_a_dense_model_is_like_itself_only(tmp_path: Path) -> None:
    assert dense_equivalent(shape_of(str(configs.write(tmp_path, configs.LLAMA_1B)))) is None
