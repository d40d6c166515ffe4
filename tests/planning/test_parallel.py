"""What expert parallelism sends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moec.errors import MoecError
from moec.huggingface.shape import shape_of
from moec.planning.parallel import expert_parallel, ranks_reached
from tests.planning import configs


@pytest.mark.parametrize(("ranks", "expected"), [(8, 5.30), (16, 6.52), (32, 7.27), (64, 7.68)])
def test_ranks_of_deepseek(ranks: int, expected: float) -> None:
    assert ranks_reached(256, 8, ranks) == pytest.approx(expected, abs=0.01)


def test_the_formula_is_what_is_drawn() -> None:
    generator = np.random.default_rng(0)
    drawn = [len(set(generator.choice(64, 6, replace=False) // 8)) for _ in range(4000)]
    assert ranks_reached(64, 6, 8) == pytest.approx(np.mean(drawn), rel=0.01)
    assert ranks_reached(64, 7, 8) != pytest.approx(np.mean(drawn), rel=0.01)


def test_bytes_of_a_token(tmp_path: Path) -> None:
    deepseek = shape_of(str(configs.write(tmp_path, configs.DEEPSEEK_V3)))
    assert expert_parallel(deepseek, 64, 8, 16).bytes_a_token == pytest.approx(9.6e6, rel=0.01)
    assert expert_parallel(deepseek, 1).tensor_parallel_bytes == 0


@pytest.mark.parametrize(("ranks", "fix"), [(3, "--ranks 2"), (0, "--ranks 1"), (100, "--ranks 64")])
def test_ranks_that_do_not_divide(ranks: int, fix: str) -> None:
    with pytest.raises(MoecError, match="M201") as refused:
        ranks_reached(64, 6, ranks)
    assert refused.value.fix == fix


def test_a_dense_model_has_nothing_to_spread(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="M201"):
        expert_parallel(shape_of(str(configs.write(tmp_path, configs.LLAMA_1B))), 8)
