"""What quantized checkpoints say of their format, in the words of those who publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec.huggingface.reading.stored import stored
from moec.huggingface.shape import shape_of
from tests.planning import configs

_GROUP = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("given", "words", "fix"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "in nvfp4:", "nvfp4"),
        (_GROUP, "in nvfp4:", "nvfp4"),
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "in fp8:", "fp8"),
        ({"quant_method": "mxfp4"}, "in mxfp4:", "mxfp4"),
        ({"quant_method": "fp8", "quant_algo": "MIXED_PRECISION"} | _GROUP, "in fp8 and nvfp4:", "nvfp4"),
        (
            {"quantized_layers": {"a": {"quant_algo": "MXFP8"}, "b": {"quant_algo": "NVFP4"}}},
            "mxfp8 and nvfp4",
            "nvfp4",
        ),
        (_AWQ, "int4-g128-zero", "int4-g128-zero"),
    ],
)
def test_the_format_is_named_with_how_to_count_in_it(given: dict[str, Any], words: str, fix: str) -> None:
    for raw in ({"quantization_config": given}, {"text_config": {"quantization_config": given}}):
        (note,) = stored(raw)
        assert words in note and note.endswith(f"try --format {fix}")


def test_a_format_that_is_not_known_is_said_not_to_be_counted() -> None:
    assert "quip" in stored({"quantization_config": {"quant_method": "quip"}})[0]
    assert stored({}) == stored({"quantization_config": None}) == ()


def test_the_note_stands_with_the_counts(tmp_path: Path) -> None:
    mixtral = configs.MIXTRAL | {"num_hidden_layers": 1, "quantization_config": {"quant_method": "mxfp4"}}
    for kind in ("mixtral", None, "odd"):
        told = {k: v for k, v in (mixtral | {"model_type": kind}).items() if kind == "mixtral" or k != "architectures"}
        notes = shape_of(str(configs.write(tmp_path, told))).notes
        assert sum("mxfp4" in note for note in notes) == 1
