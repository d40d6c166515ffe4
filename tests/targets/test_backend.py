"""A target's backend is found, or refused with a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moec.errors import MoecError
from moec.targets.backend import find_backend
from moec.targets.target import Target

TARGET = Target("onnxruntime")


def test_backends_are_found_or_refused() -> None:
    assert find_backend(TARGET).name == "onnxruntime"
    for target, code in (
        (Target("onxruntime"), "M202"),
        (Target("onnxruntime", "tpu"), "M208"),
        (replace(TARGET, options={"precision": "int3"}), "M208"),
    ):
        with pytest.raises(MoecError) as caught:
            find_backend(target)
        assert caught.value.code == code
