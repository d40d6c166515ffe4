"""A checkpoint's folder: written beside its place and renamed when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.files.exchange import move
from moec.files.inside import leads_outside
from moec.files.refused import refused
from moec.files.workplace import workplace
from moec.progress import Progress
from moec.weights.lazy import Weight
from moec.weights.shards import write_shards

_BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
)


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Write beside the folder and rename; nothing is left behind after an error or an interrupt."""
    if folder.exists():
        raise MoecError("M210", "the checkpoint's folder exists already", str(folder), "remove it or name another")
    try:
        with workplace(folder) as place:
            partial = place / "checkpoint"
            partial.mkdir()
            write(partial)
            move(partial, folder)
    except OSError as error:
        better = refused(error, folder.parent, folder)
        if better is None:
            raise
        raise better from error


def write_checkpoint(
    folder: Path,
    config: Any,
    stored: dict[str, Weight],
    max_shard_bytes: int,
    beside: Path | None,
    texts: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write config.json and the weights, one block of a weight in memory at a time.

    Args:
        stored: name in the files -> lazy weight. max_shard_bytes: of one weight file.
        beside: a folder whose tokenizer files, licence and the like are copied, or None.
        texts: of more files, by name. progress: is told the bytes of the weights.
    """
    config.save_pretrained(folder)
    for name, text in (texts or {}).items():
        (folder / name).write_text(text, "utf-8")
    write_shards(folder, stored, max_shard_bytes, progress)
    for pattern in _BESIDE if beside else ():
        for file in beside.glob(pattern):  # type: ignore[union-attr]
            if file.is_file() and not leads_outside(file, beside):  # type: ignore[arg-type]
                shutil.copyfile(file, folder / file.name)
