"""A checkpoint format is one class: its file's name is its own, and its methods are nobody else's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from moec import registry
from moec.errors import MoecError
from moec.huggingface.checkpoint_format import CheckpointFormat
from moec.huggingface.reading.quantized import decoder_of
from tests.third_party import install

FOLDER = Path(__file__).parents[2] / "moec" / "huggingface" / "formats"
THEIRS = """
from moec import CheckpointFormat

class Rows(CheckpointFormat):
    methods = ("rows8",)

    def why_not(self, config):
        return "" if config.get("bits") == 8 else "it has no 8 bits"

    def decode(self, stored, config):
        return {**stored, "bits": config["bits"]}
"""


def test_every_file_is_a_format_and_no_method_has_two() -> None:
    files = {p.stem.replace("_", "-") for p in FOLDER.glob("*.py") if p.stem != "__init__"}
    assert files == set(registry.names("formats"))
    kinds = [registry.find("formats", name) for name in files]
    assert all(issubclass(kind, CheckpointFormat) for kind in kinds)
    assert set(Counter(m for kind in kinds for m in kind.methods).values()) == {1}


def test_a_third_partys_format_is_found_by_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MoecError, match="rows8"):
        decoder_of({"quantization_config": {"quant_method": "rows8", "bits": 8}}, tmp_path)
    install(tmp_path, monkeypatch, THEIRS, formats="rows = theirs:Rows")
    found = decoder_of({"quantization_config": {"quant_method": "rows8", "bits": 8}}, tmp_path)
    assert found is not None and found({"a": 1}) == {"a": 1, "bits": 8}  # type: ignore[dict-item,comparison-overlap]
    with pytest.raises(MoecError, match="it has no 8 bits") as caught:
        decoder_of({"quantization_config": {"quant_method": "rows8"}}, tmp_path)
    assert caught.value.code == "M206"
