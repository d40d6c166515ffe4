"""Every combination that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.huggingface.shape import shape_of
from moec.planning.estimate import estimate
from moec.planning.shape import Shape
from tests.planning import configs


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return shape_of(str(configs.write(tmp_path_factory.mktemp("qwen"), configs.QWEN3_30B)))


def test_a_row_for_each_and_times_only_where_it_fits(qwen: Shape) -> None:
    found = estimate(qwen, ("bf16", "int4"), ("h200", "rtx4090"), (1, 64), 4096).situations
    assert len(found) == 8
    for row in found:
        assert (row.decode_time is not None) == (row.devices == 1)
    assert {(r.format, r.device, r.batch): r.devices for r in found}[("bf16", "rtx4090", 1)] == 3
    assert {(r.format, r.device, r.batch): r.devices for r in found}[("int4", "rtx4090", 1)] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"formats": ("int5",)}, "M202", "int4"),
        ({"devices": ("h20",)}, "M202", "h200"),
        ({"batches": (0,)}, "M201", "--batch"),
        ({"context": 50_000}, "M201", "--context 40960"),
    ],
)
def test_bad_questions(qwen: Shape, arguments: dict[str, object], code: str, words: str) -> None:
    with pytest.raises(MoecError, match=code) as refused:
        estimate(qwen, **arguments)  # type: ignore[arg-type]
    assert words in str(refused.value)


def test_an_encoder_has_no_step(tmp_path: Path) -> None:
    bert = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "num_attention_heads": 12}
    found = estimate(shape_of(str(configs.write(tmp_path, bert))), context=128).situations[0]
    assert found.decode is None and found.prompt.flops > 0 and found.memory.state == 0
