"""What a text that names a model stands for: a folder, a model of the hub in the local cache, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from moec.frontend.account import LeaveOut
from moec.frontend.source import Opening
from moec.huggingface.gguf.file import GgufFile, is_gguf
from moec.huggingface.reading.folder import ModelFolder, resolve


def origin_of(text: str, opening: Opening, leave_out: LeaveOut) -> ModelFolder:
    """The model, opened; no weight is read. Raises M204, M205, M206 or M209, see `ModelFolder` and `GgufFile`."""
    kind = GgufFile if is_gguf(text) else ModelFolder
    return kind(text, opening.trust_remote_code, opening.allow_pickle, leave_out)


def home_of(text: str) -> Path:
    """The folder that its files are named in. Raises M204 where there is none."""
    return Path(text).resolve().parent if is_gguf(text) else resolve(text)
