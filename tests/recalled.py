"""What stands for moec's function that captures, where tests may take captures that were kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import transformers

from moec.files import kept
from moec.files.kept import FOLDER
from moec.frontend.kept_capture import capture_key, keep_capture, recall_capture
from moec.huggingface.capturing import _kind
from moec.huggingface.reading.loaded import Loaded
from moec.program.program import Program
from tests.built import built_as
from tests.kept_captures import KeptCaptures, may_take_kept


class Captured:
    """`moec.huggingface.capturing.captured`, with that folder where it may be used: of models in folders, as moec keeps
    them, and of the zoo's in memory, which moec captures each time."""

    def __init__(self, own: KeptCaptures, real: Callable[..., Any]) -> None:
        self.own, self.real = own, real

    def __call__(self, origin: Any, *args: Any) -> tuple[Program, str]:
        folder, item = self.own.folder, self.own.item
        if folder is None or item is None or os.environ.get(FOLDER) != "off" or not may_take_kept(item):
            return self.real(origin, *args)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(FOLDER, str(folder))
            patch.setattr(kept, "_unused", [])  # later proofs read nothing that a compile kept
            if how := built_as(origin.template) if isinstance(origin, Loaded) else "":
                return self._of_the_zoo(how, origin, *args)
            return self.real(origin, *args)

    def _of_the_zoo(
        self, built: str, origin: Loaded, model: Any, weights: Any, sample: Any, dynamic: Any, text: str,
        kinds: list[type], *how: Any,
    ) -> tuple[Program, str]:  # fmt: skip
        key = capture_key(model, weights, sample, dynamic, built, transformers.__version__, *how)
        found = recall_capture(key, text, weights, model)
        if found is not None and (kind := _kind(found.note)):
            kinds.append(kind)
            return found.program, ""
        program, _ = self.real(origin, model, weights, sample, dynamic, text, kinds, *how)
        keep_capture(key, program, weights, model, f"{kinds[-1].__module__}:{kinds[-1].__qualname__}" if kinds else "")
        return program, ""
