"""What a text that names a model stands for: a folder, a model of the hub in the local cache, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moec.frontend.account import LeaveOut
from moec.frontend.source import Opening
from moec.huggingface.gguf.file import GgufFile, is_gguf
from moec.huggingface.origin import Origin
from moec.huggingface.reading.folder import ModelFolder, resolve


def origin_of(text: str, opening: Opening, leave_out: LeaveOut) -> ModelFolder:
    """The model, opened; no weight is read. Raises M204, M205, M206 or M209, see `ModelFolder` and `GgufFile`."""
    return _opened(text, opening.trust_remote_code, opening.allow_pickle, leave_out)


def alike(origin: Origin, text: str) -> ModelFolder:
    """Another model, opened with the permissions of the first; without any, where that was in memory."""
    return _opened(text, *(origin.permissions if isinstance(origin, ModelFolder) else ()))


def _opened(text: str, *permissions: Any) -> ModelFolder:
    return (GgufFile if is_gguf(text) else ModelFolder)(text, *permissions)


def home_of(text: str) -> Path:
    """The folder that its files are named in. Raises M204 where there is none."""
    return Path(text).resolve().parent if is_gguf(text) else resolve(text)
