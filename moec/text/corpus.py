"""A file of text, or of tokens, as windows that a language model can be judged on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError, reason_of
from moec.execution.memory import total_bytes
from moec.files.nearby import nearby
from moec.files.regular import file_hash, read_bytes
from moec.frontend.source import Source
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.program.decoder_signature import IDS, LOGITS, require_text_model
from moec.text.tokenizer import find_tokenizer

ARRAYS = (".npy", ".npz", ".safetensors")
_FIX = f"give a UTF-8 text, or token ids in a file that ends in {', '.join(ARRAYS)}"


@dataclass(frozen=True)
class Corpus:
    """A text in a model's own tokens.

    Attributes:
        name: the file as it was named. sha256: of its bytes.
        tokens: int64 `[N]`, without special ones.
        start: the token that the tokenizer puts before every text, none for a file of tokens; it begins every window,
            for there are models that say nothing sensible without it.
    """

    name: str
    sha256: str
    tokens: Tensor
    start: tuple[int, ...] = ()

    def windows(self, length: int, limit: int = 0, batch: int = 4) -> Iterator[Tensor]:
        """The text in pieces that follow each other without overlap.

        Args:
            length: tokens of a window, `start` included. limit: tokens of the text to use; 0 for all. batch: windows at
                a time.

        Yields:
            int64 `[up to batch, length]`; at the end what is left, as one shorter row, unless nothing in it can be
                predicted.
        """
        step, tokens = length - len(self.start), self.tokens[:limit] if limit else self.tokens
        whole = len(tokens) // step
        rows, rest = tokens[: whole * step].view(whole, step), tokens[whole * step :]
        pieces = [rows[k : k + batch] for k in range(0, whole, batch)]
        for piece in [*pieces, *([rest[None]] if len(rest) and len(rest) + len(self.start) > 1 else [])]:
            yield torch.cat([torch.tensor(self.start, dtype=torch.int64).expand(len(piece), -1), piece], dim=1)


def corpus_of(text: str, source: Source, folder: Path | None = None) -> Corpus:
    """A text in a source's tokens.

    Args:
        folder: of an engine, where there is one; its tokenizer is taken first.

    Raises:
        MoecError: M211 when the source takes no tokens, else see `read_corpus`.
    """
    require_text_model(source.inputs, (LOGITS,), source.text)
    domain = source.domains.get(IDS)
    vocabulary = domain.high if domain is not None and domain.kind == "token" else 0
    return read_corpus(Path(text), folder or Path(source.text), source.text, vocabulary, type(source))


def read_calibration(text: CalibrationText, source: Source, seed: int) -> Calibration:
    """The text for passes that need data, in a source's tokens; windows are cut to the source's context. Several texts
    with names are one that has them as parts.

    Raises:
        MoecError: M211 when a text is shorter than one window, else see `corpus_of`.
    """
    window = min(text.window, source.facts().context or text.window)
    parts = {
        name: read_calibration(replace(text, file=file, window=window), source, seed)
        for name, file in text.parts.items()
    }
    if not parts:
        corpus = corpus_of(text.file, source)
        return Calibration(replace(text, window=window), corpus.sha256, corpus.tokens, corpus.start, seed)
    tokens, start = torch.cat([part.tokens for part in parts.values()]), next(iter(parts.values())).start
    sha256 = _joined_hash({name: part.sha256 for name, part in parts.items()})
    return Calibration(replace(text, window=window), sha256, tokens, start, seed, parts)


def calibration_hash(text: CalibrationText) -> str:
    """What `read_calibration` has as SHA-256 of a text, or of several. Raises OSError for a file that cannot be
    read."""
    if not text.parts:
        return file_hash(text.file)
    return _joined_hash({name: file_hash(file) for name, file in text.parts.items()})


def _joined_hash(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def read_corpus(file: Path, folder: Path, source: str, vocabulary: int = 0, kind: type[Source] | None = None) -> Corpus:
    """Read a text and turn it into tokens.

    Args:
        file: UTF-8 text; or token ids, of any integer type and shape, in a `.npy`, `.npz` or `.safetensors` (its
            `input_ids`, or its only array).
        folder, source: an engine's folder and its model as it was named; the tokenizer is looked for in this order.
        vocabulary: exclusive upper bound of token ids; 0 when it is not known.
        kind: the class of the model's source where it is open; its tokenizer comes first.

    Raises:
        MoecError: M204 when there is no tokenizer; M211 when the file cannot be read, or has fewer than two tokens, or
            one that the model lacks.
    """
    try:
        data = read_bytes(file, total_bytes() // 4)
    except OSError as error:
        fix = _FIX if file.exists() else nearby(file, _FIX, Path.is_file)
        raise MoecError("M211", f"the text cannot be read: {error.strerror}", str(file), fix) from error
    tokens, start = (_stored(file, data), ()) if file.suffix in ARRAYS else _tokenized(data, file, folder, source, kind)
    if len(tokens) < 2:
        raise MoecError(
            "M211",
            f"the text has {len(tokens)} tokens, too few to predict one from another",
            str(file),
            "give a longer text",
        )
    strange = tokens[(tokens < 0) | (tokens >= vocabulary)] if vocabulary else tokens[tokens < 0]
    if len(strange):
        fix = f"the model's tokens are 0 to {vocabulary - 1}" if vocabulary else "tokens are 0 or more"
        raise MoecError("M211", f"the model has no token {int(strange[0])}", str(file), fix)
    return Corpus(str(file), hashlib.sha256(data).hexdigest(), tokens, start)


def _tokenized(
    data: bytes, file: Path, folder: Path, source: str, kind: type[Source] | None
) -> tuple[Tensor, tuple[int, ...]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MoecError("M211", f"not UTF-8: {error.reason} at byte {error.start}", str(file), _FIX) from error
    try:
        tokenizer = find_tokenizer(folder, source, kind)
    except MoecError as error:
        fix = f"put the model's tokenizer.json there, or give token ids in a file that ends in {', '.join(ARRAYS)}"
        raise MoecError(error.code, f"{error.what}, which a text needs", error.where, fix) from error
    return torch.tensor(tokenizer.encode(text), dtype=torch.int64), tokenizer.start


def _stored(file: Path, data: bytes) -> Tensor:
    """The tokens in the bytes that were read, which are those that are hashed."""
    try:
        value = torch.as_tensor(_array(file, data))
    except Exception as error:  # each format has exceptions of its own
        reason = reason_of(error)
        raise MoecError("M211", f"the tokens cannot be read: {reason}", str(file), _FIX) from error
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise MoecError("M211", f"these are {str(value.dtype)[6:]}, not token ids", str(file), "store integers")
    return value.flatten().to(torch.int64)


def _array(file: Path, data: bytes) -> Any:
    import numpy as np

    if file.suffix == ".npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    if file.suffix == ".npz":
        arrays: Any = np.load(io.BytesIO(data), allow_pickle=False)
    else:
        from safetensors.torch import load

        arrays = load(data)
    names = list(arrays)
    if "input_ids" not in names and len(names) != 1:
        raise ValueError(f"none of its arrays {', '.join(names)} is called input_ids")
    return arrays["input_ids" if "input_ids" in names else names[0]]
