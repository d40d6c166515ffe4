"""Which GPUs have a number format, and that the library itself has the last word."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.backends.tensorrt.building.worker import call
from moec.backends.tensorrt.edition import EDITIONS
from moec.backends.tensorrt.graph.formats import FIRST, lacking
from moec.errors import MoecError
from tests.backends.tensorrt.tiny import needs_rtx, request, write_floats


@pytest.mark.parametrize(
    ("kind", "edition", "architectures", "words"),
    [
        ("fp8", "tensorrt-rtx", (86, 89), ("sm86 has no fp8, which came with sm89", "tensorrt-rtx:sm89,sm120,sm121")),
        ("nvfp4", "tensorrt-rtx", (75, 89, 120), ("sm75 and sm89 have no nvfp4", "tensorrt-rtx:sm120,sm121")),
        (
            "nvfp4",
            "tensorrt",
            (90,),
            ("sm90 has no nvfp4", "one of the GPUs that have it, --target tensorrt:sm100,sm103"),
        ),
        ("fp8", "tensorrt", (), ("sm80, which is not ruled out, has no fp8", "tensorrt:sm89,sm90")),
    ],
)
def test_gpus_without_it_are_named(
    kind: str, edition: str, architectures: tuple[int, ...], words: tuple[str, str]
) -> None:
    found = lacking(kind, edition, architectures)
    assert found is not None and words[0] in found[0] and words[1] in found[1]


def test_gpus_with_it_are_not() -> None:
    for edition in EDITIONS.values():
        for kind, first in FIRST.items():
            assert lacking(kind, edition.backend, [sm for sm in edition.architectures if sm >= first]) is None


@needs_rtx
@pytest.mark.parametrize(
    ("kind", "sm", "works"), [("fp8", 86, False), ("fp8", 89, True), ("nvfp4", 89, False), ("nvfp4", 120, True)]
)
def test_the_builder_says_the_same(kind: str, sm: int, works: bool, tmp_path: Path) -> None:
    asked = request(tmp_path, onnx=write_floats(tmp_path / "model.onnx", kind), architectures=[sm])
    if works:
        assert call(asked)["layers"]["DEQUANTIZE"] == (2 if kind == "nvfp4" else 1)
        return
    with pytest.raises(MoecError, match="HW-specific") as caught:
        call(asked)
    assert caught.value.code == "M208" and lacking(kind, "tensorrt-rtx", (sm,)) is not None
