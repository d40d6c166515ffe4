"""A program as the eager model that transformers makes of its checkpoint: a reference that shares no graph with it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from moec.errors import MoecError
from moec.huggingface.reading.folder import ModelFolder
from moec.huggingface.saving.save import save_hf
from moec.program.program import Program


def loaded_from(program: Program, source: Any) -> Any:
    """The model in float32, weights loaded; None where no architecture of transformers holds the program.

    Args:
        source: the `HuggingFaceSource` that the program's base was captured from.
    """
    with TemporaryDirectory(prefix="moec-reference-") as place:
        folder = Path(place) / "model"
        try:
            save_hf(program, folder, source, torch.float32)
        except MoecError as error:
            if error.code != "M206":
                raise
            return None
        return ModelFolder(str(folder)).loaded()
