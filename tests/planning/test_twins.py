"""Dense models that a mixture is held against."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.huggingface.shape import shape_of
from moec.planning.formats import FORMATS
from moec.planning.step import decode_step
from moec.planning.twins import changes, dense_twin, first_batch, rivals
from tests.planning import configs


def test_a_twin_has_the_parameters_asked_for_and_the_same_attention(tmp_path: Path) -> None:
    for config in (configs.MIXTRAL, configs.QWEN3_30B, configs.GPT_OSS, configs.DEEPSEEK_V3):
        shape = shape_of(str(configs.write(tmp_path, config)))
        for wanted in (shape.active, (shape.active * shape.total) ** 0.5):
            twin = dense_twin(shape, wanted)
            assert twin.total == pytest.approx(wanted, rel=1e-4) and twin.active == twin.total and not twin.mixtures
            assert twin.parts()["attention"] == shape.parts()["attention"] and twin.states == shape.states
        with pytest.raises(ValueError, match="leave none"):
            dense_twin(shape, 1e6)


def test_at_one_text_the_mixture_reads_what_its_active_twin_reads_and_more_with_more(tmp_path: Path) -> None:
    shape = shape_of(str(configs.write(tmp_path, configs.MIXTRAL)))
    twin = rivals(shape)[0].shape
    read = {
        batch: [decode_step(model, FORMATS["bf16"], batch, 1).bytes / batch / 1e9 for model in (shape, twin)]
        for batch in (1, 4, 1024)
    }
    assert read[1][0] == pytest.approx(25.5, abs=0.05) and read[1][1] == pytest.approx(read[1][0], rel=1e-3)
    assert read[4][0] == pytest.approx(16.2, rel=0.01) and read[4][1] == pytest.approx(6.4, rel=0.01)
    assert read[1024][0] / read[1024][1] == pytest.approx(46.57 / 12.75, rel=0.01)


def test_who_is_compared_with(tmp_path: Path) -> None:
    mixture = shape_of(str(configs.write(tmp_path, configs.MIXTRAL)))
    dense = shape_of(str(configs.write(tmp_path, configs.LLAMA_1B)))
    assert [r.shape.total / 1e9 for r in rivals(mixture)] == [pytest.approx(12.88, 0.01), pytest.approx(24.5, 0.01)]
    assert rivals(dense) == () and [r.shape for r in rivals(mixture, dense)] == [dense]


def test_the_batch_at_which_it_turns_is_found_to_one() -> None:
    assert [first_batch(lambda b, n=n: b >= n) for n in (1, 2, 206, 65_536)] == [1, 2, 206, 65_536]  # type: ignore[misc]
    assert first_batch(lambda b: False) is None
    assert changes(lambda b: abs(b - 100), lambda b: 40) == [61, 140]
    assert changes(lambda b: 1, lambda b: 2) == []
