"""What a text needs beside an engine: a tokenizer, and the model's own limits and end tokens, read from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.huggingface.companions import facts_of
from moec.layouts import ModelFacts
from moec.program.program import Input

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(engine: Path, source: str) -> Any:
    """The tokenizer of transformers whose files lie in an engine's folder, else with the model that the engine was made
    from.

    Args:
        engine: the folder.
        source: the model as it was named: a folder or a hub id in the local cache.

    Raises:
        MoecError: M204 when neither has one, or it does not load.
    """
    folder = next((f for f in (engine, *_folders(source)) if any((f / name).is_file() for name in FILES)), None)
    if folder is None:
        fix = (
            f"put the model's tokenizer.json and tokenizer_config.json into {engine}, or give token ids: --tokens 1,2,3"
        )
        raise MoecError(
            "M204", f"there is no tokenizer beside the engine or with its source {source!r}", str(engine), fix
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # missing entries, packages and versions each have an exception of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise MoecError(
            "M204",
            f"the tokenizer does not load: {reason}",
            str(folder),
            "correct its files, or give token ids: --tokens 1,2,3",
        ) from error


def text_facts(engine: Path, source: str, inputs: Sequence[Input]) -> ModelFacts:
    """Context, vocabulary and end tokens as config.json and generation_config.json say; nothing but a name where there
    is no config."""
    folder = next((f for f in (engine, *_folders(source)) if (f / "config.json").is_file()), None)
    if folder is None:
        return ModelFacts(source)
    from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

    raw = _read(folder / "config.json")
    kind: Any = (
        CONFIG_MAPPING[raw["model_type"]] if raw.get("model_type") in CONFIG_MAPPING else PreTrainedConfig
    )  # never the model's own code
    stored = (folder / "generation_config.json").is_file()
    return facts_of(
        source,
        kind.from_dict(raw),
        GenerationConfig.from_dict(_read(folder / "generation_config.json")) if stored else None,
        inputs,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(raw, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise MoecError(
            "M204", f"{path.name} is not a JSON object", str(path), "restore the file, or compile the engine again"
        ) from error
    return raw


def _folders(source: str) -> list[Path]:
    """Where the source's files are, if it is a folder or a model in the local cache."""
    if Path(source).is_dir():
        return [Path(source)]
    from huggingface_hub import snapshot_download

    try:
        return [Path(snapshot_download(source, local_files_only=True))]
    except Exception:  # no hub id, or not in the cache: the library has a class of its own for each
        return []
