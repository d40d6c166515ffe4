"""What a text needs beside an engine: a tokenizer, and the model's own limits and end tokens, read from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moec.errors import MoecError, reason_of
from moec.files.inside import read_inside, require_inside
from moec.huggingface.companions import facts_of
from moec.huggingface.reading.config_sizes import built_from
from moec.layouts import ModelFacts
from moec.program.program import Input

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
# what transformers may read of a tokenizer
_READ = (
    "config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*token*.json",
    "merges.txt",
    "vocab*",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates",
    "additional_chat_templates/*",
)


class TransformersTokenizer:
    """A tokenizer of transformers as `moec.frontend.source.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        first = tokenizer("")["input_ids"][:1]
        self.start = tuple(int(i) for i in first if i == tokenizer.bos_token_id)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def encode_prompt(self, text: str) -> list[int]:
        """The tokens of a text with the special ones around it."""
        found: list[int] = self._tokenizer(text)["input_ids"]
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens without special ones."""
        return str(self._tokenizer.decode([*tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def __len__(self) -> int:
        return len(self._tokenizer)


def load_tokenizer(engine: Path, source: str) -> TransformersTokenizer | None:
    """The tokenizer of transformers whose files lie in an engine's folder, else with the model that the engine was made
    from; None where neither has one.

    Args:
        engine: the folder.
        source: the model as it was named: a folder or a hub id in the local cache.

    Raises:
        MoecError: M204 when it does not load, or a file of it is a link out of its folder.
    """
    folder = next((f for f in (engine, *_folders(source)) if any((f / name).is_file() for name in FILES)), None)
    if folder is None:
        return None
    for file in (f for pattern in _READ for f in folder.glob(pattern)):
        require_inside(file, folder)
    from transformers import AutoTokenizer

    try:  # said outright: transformers asks on the terminal where it is not told
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return TransformersTokenizer(tokenizer)
    except Exception as error:  # missing entries, packages and versions each have an exception of their own
        reason = reason_of(error)
        raise MoecError(
            "M204",
            f"the tokenizer does not load: {reason}",
            str(folder),
            "correct its files, or give token ids: --tokens 1,2,3",
        ) from error


def text_facts(engine: Path, source: str, inputs: Sequence[Input]) -> ModelFacts | None:
    """Context, vocabulary and end tokens as config.json and generation_config.json say; None where there is no
    config."""
    folder = next((f for f in (engine, *_folders(source)) if (f / "config.json").is_file()), None)
    if folder is None:
        return None
    from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

    raw = _read(folder / "config.json")
    kind: Any = (
        CONFIG_MAPPING[raw["model_type"]] if raw.get("model_type") in CONFIG_MAPPING else PreTrainedConfig
    )  # never the model's own code
    stored = (folder / "generation_config.json").is_file()
    with built_from(folder / "config.json"):
        generation = GenerationConfig.from_dict(_read(folder / "generation_config.json")) if stored else None
        return facts_of(source, kind.from_dict(raw), generation, inputs)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(read_inside(path, path.parent))
        assert isinstance(raw, dict)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
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
