"""A model that lies in a GGUF file, as a source's origin."""

from __future__ import annotations

from collections.abc import Container
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from moec.errors import MoecError, reason_of
from moec.files.nearby import is_model, nearby
from moec.files.regular import file_hash
from moec.frontend.snapshot import Snapshot
from moec.huggingface.gguf.read import read_gguf
from moec.huggingface.reading.checkpoint import Checkpoint
from moec.huggingface.reading.config_sizes import check_size
from moec.huggingface.reading.folder import ModelFolder

ENDING = ".gguf"


def is_gguf(text: str) -> bool:
    """Whether a model is named as a GGUF file. Reads nothing."""
    return text.endswith(ENDING) and not Path(text).is_dir()


class GgufFile(ModelFolder):
    """The model of a GGUF file: what a folder has in several files, this one says itself. Its config.json is written
    into a folder of its own, which goes with the object.

    Args:
        text: the file.
        trust_remote_code, allow_pickle, leave_out: as of a `ModelFolder`, for models that are opened beside it; a GGUF
            file itself has neither code nor pickles.

    Raises:
        MoecError: see `moec.huggingface.gguf.read.read_gguf`; M204 where there is no such file.
    """

    def __init__(
        self,
        text: str,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        leave_out: Container[str] = (),
    ) -> None:
        self.permissions = trust_remote_code, allow_pickle, leave_out
        self.file = Path(text)
        if not self.file.is_file():
            fix = nearby(text, "check the path; moec downloads nothing", is_model)
            raise MoecError("M204", "there is no such file", text, fix)
        self.hub, self.adapter, self.code = "", None, []
        self.snapshot = Snapshot.of([self.file])
        found = read_gguf(self.file)
        self._vocabulary = found.vocabulary
        self.raw, self.config, self.model_class = found.config, found.built, found.model_class
        self.checkpoint = Checkpoint(self.file.parent, (self.file.name,), found.weights, found.stored_bytes)
        self.quantized = True  # its tensors are decoded here, never by transformers
        check_size(self.model_class, self.config, self.checkpoint.weights, self.file)
        self._place = TemporaryDirectory(prefix="moec-gguf-")
        self.path = Path(self._place.name)
        self.config.save_pretrained(self.path)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the file."""
        return {self.file.name: file_hash(self.file)}

    @cached_property
    def beside(self) -> Path:  # type: ignore[override]  # the vocabulary is read only when somebody asks
        """A folder with config.json and the tokenizer that transformers makes of the file's vocabulary.

        Raises:
            MoecError: M204 for a vocabulary that transformers does not read.
        """
        if self._vocabulary != "none":
            self._tokenizer().save_pretrained(self.path)
        return self.path

    def _tokenizer(self) -> Any:
        """Made in a folder that holds the file alone: transformers would read what lies beside it, and may run it."""
        from transformers import AutoTokenizer

        try:
            with TemporaryDirectory(prefix="moec-gguf-") as place:
                name = _put(self.file, Path(place)).name
                return AutoTokenizer.from_pretrained(
                    place, gguf_file=name, local_files_only=True, trust_remote_code=False
                )
        except Exception as error:  # it raises anything for what it does not know
            reason = reason_of(error)
            what = f"transformers does not read the file's vocabulary: {reason}"
            fix = "compile the checkpoint of transformers that the file was made from"
            raise MoecError("M204", what, str(self.file), fix) from error


def _put(file: Path, folder: Path) -> Path:
    """The file in another folder, where the system allows it without a copy."""
    there = folder / f"model{ENDING}"
    for link in (there.symlink_to, there.hardlink_to):
        try:
            link(file.resolve())
        except OSError:
            continue
        return there
    return Path(copyfile(file, there))
