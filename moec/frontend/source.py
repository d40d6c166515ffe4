"""Where a model comes from: something that can be captured, and run untouched in eager PyTorch to compare with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.account import Account
from moec.frontend.domain import Domain, sample_input
from moec.frontend.snapshot import Snapshot
from moec.layouts.facts import ModelFacts, model_name
from moec.planning.shape import Shape
from moec.program.decoder_signature import PAST
from moec.program.encoder_decoder import with_encoder
from moec.program.program import Input, Program, dynamic_dimensions
from moec.progress import Progress


@dataclass(frozen=True)
class Opening:
    """How a model is to be opened, beside its name.

    Attributes:
        inputs: sample tensors by name, or `name=dims:dtype` texts; None where the model says it itself.
        dynamic: names of dynamic dimensions by input, see `moec.frontend.export.capture`.
        trust_remote_code, allow_pickle: run code that came with the model; refused by default.
        cache: give a model that generates text a cache of keys and values as inputs and outputs.
        leave_out: names (with `*` and `?`) of inputs, tensors and files of the model that the engine is to be without.
        part: of a model in parts, the one to open, see `Source.parts`; empty for the whole.
    """

    inputs: Mapping[str, Tensor] | Sequence[str] | None = None
    dynamic: Mapping[str, Sequence[str | int | None]] | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    cache: bool = True
    leave_out: Sequence[str] = ()
    part: str = ""

    @property
    def specs(self) -> list[str]:
        """The inputs that are given as texts."""
        return [] if self.inputs is None or isinstance(self.inputs, Mapping) else [str(i) for i in self.inputs]


class Tokenizer(Protocol):
    """Text to tokens and back.

    Attributes:
        start: tokens that stand before every text, mostly one or none.
    """

    start: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text alone."""

    def encode_prompt(self, text: str) -> list[int]:
        """The tokens of a text with the special ones that a model expects around it."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens; special ones have none."""


class Source(ABC):
    """A model as the user named it: where its program, its untouched reference and the files beside it come from.

    A class that is registered as a source (`moec.sources`, see `moec.registry`) says which models it `opens`. What a
    model may lack (facts, files, a tokenizer, a form of its own for checkpoints) has an answer that says so.

    Attributes:
        text: how it was named.
        inputs: its inputs with their dynamic dimensions.
        domains: which values each input may take, by name.
        hashes: SHA-256 of the files that it was read from, by path relative to the model's folder.
        size_bytes: bytes of its weights.
        snapshot: of these files as they were when they were opened; None for a model in memory.
        recalled_from: the key of the capture that the last one was taken from, see `moec.frontend.kept_capture`; empty
            where it was made.
        scale: of dimensions that have many more elements than a text has tokens (samples of sound, pixels), how many
            stand for one token; sizes to verify at are so many times larger.
        steps, models_hash: where passes make the model of several, what they did, and SHA-256 over the others' files.
        leaves_out: whether it knows `Opening.leave_out`; one that does not is never opened with it.
        stands_for: of a model that is cut to its first layers, for each layer of the whole one the layer that is of its
            kind; empty for a model that is whole.
    """

    text: str
    inputs: tuple[Input, ...]
    domains: dict[str, Domain]
    hashes: dict[str, str]
    size_bytes: int
    snapshot: Snapshot | None = None
    recalled_from: str = ""
    scale: Mapping[str, int] = MappingProxyType({})
    steps: Sequence[Any] = ()
    models_hash: str = ""
    leaves_out: ClassVar[bool] = False
    stands_for: tuple[int, ...] = ()

    @classmethod
    def opens(cls, model: Any, opening: Opening) -> bool:
        """Whether this class opens what the user gave: a text, a path or an object. Reads no file."""
        return False

    @classmethod
    def open(cls, model: Any, opening: Opening) -> Source:
        """The source of a model that this class `opens`; reads no weight.

        Raises:
            MoecError: M204, M205, M206 or M209 when there is no such model, or moec must not or cannot read it.
        """
        raise NotImplementedError(f"{cls.__name__} opens no model")

    @classmethod
    def takes_inputs(cls, model: Any) -> bool:
        """Whether `Opening.inputs` and `dynamic` say which inputs such a model has; where it has its own, they are
        refused, never ignored."""
        return False

    @classmethod
    def files(cls, model: str) -> tuple[Path, ...]:
        """Files that the model of this name is opened from, if that can be told without opening it, as in `hashes`. A
        manifest's are compared with its hashes before anything is opened."""
        return ()

    @classmethod
    def home(cls, model: str) -> Path:
        """The folder that the names in `hashes` are relative to. Opens nothing. Raises M204 where there is none."""
        files = cls.files(model)
        return files[0].resolve().parent if files else Path(model)

    @classmethod
    def runs(cls, model: str) -> str:
        """What code of the model would run when it is opened or used; asked of models that a manifest names."""
        return ""

    @classmethod
    def shape(cls, model: str) -> Shape | None:
        """The shape of a model that this class `opens`, from its config alone; None where it keeps none."""
        return None

    @classmethod
    def described(cls, model: str) -> Source | None:
        """The model as its config describes it, which can be captured, not loaded, perhaps cut to layers of every kind.
        None where models keep no config."""
        return None

    @classmethod
    def save_tiny(cls, model: str, folder: Path, seed: int) -> int | None:
        """Write a tiny random model of the architecture into an empty folder; returns its parameters, None without a
        config."""
        return None

    @property
    def places(self) -> tuple[Path, ...]:
        """The files and folders that the model is read from; no engine is put in their place."""
        return tuple(path for path in (Path(self.text), *self.files(self.text)) if path.exists())

    @property
    def loaded_bytes(self) -> int:
        """Memory that the reference takes; more than `size_bytes` where it has to be decoded."""
        return self.size_bytes

    @abstractmethod
    def reference(self) -> Engine:
        """The untouched model in eager PyTorch, weights loaded. Never the captured, patched or rewritten one."""

    @abstractmethod
    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """The model as a Program, floating weights converted to `dtype` lazily."""

    def alike(self, model: str) -> Source:
        """Another model, opened as this one was, to be merged with it. Raises M201 where models of a kind do not."""
        raise MoecError("M201", f"{self.text} cannot be merged with other models", model, "merge Hugging Face folders")

    def reference_of(self, program: Program) -> Engine | None:
        """The model that passes made of this one, in eager PyTorch; None where only the program says what it is."""
        return None

    def parts(self) -> Mapping[str, Source]:
        """The models that are compiled in this one's place, by name, each to a graph; nothing for one that is one."""
        return {}

    def joined_by(self) -> Mapping[str, Any]:
        """What an engine of all `parts` takes beside them: plain data, by the names of its arguments."""
        return {}

    def account(self) -> Account:
        """What the model is taken to be and what is left out of it, before anything is compared. A module in memory is
        what it is, with the inputs that it was given. Raises M215 to M217, or M205, for what cannot be explained."""
        return Account(self.text, inputs=tuple(i.name for i in self.inputs))

    def require_unchanged(self) -> None:
        """Raise M106 when a file that the model was read from is not what it was when it was opened."""
        if self.snapshot is not None:
            self.snapshot.require_unchanged()

    # ------------------------------------------------------------------ what stands beside a model
    def facts(self) -> ModelFacts:
        """What clients of an engine need to know of its model; a name at least. Raises M204 where files are broken."""
        return ModelFacts(model_name(self.text))

    def write_companions(self, folder: Path) -> None:  # noqa: B027  # most sources have no files
        """Put the model's own files (config, tokenizer, licence; no weights, no code) into an engine's folder."""

    def save_checkpoint(self, program: Program, folder: Path, hf_format: str, progress: Progress) -> Sequence[str]:
        """Write a rewritten program as a checkpoint in the form that this model came in, into a folder that does not
        exist, its packed weights in the form `hf_format`; returns what is to be said of it, a line each.

        Raises:
            MoecError: M206 where there is no such form, or it does not hold the program; M203 where its 16 bits do not
                hold the scales; M210 when the folder cannot be written.
        """
        what = "only a model of the transformers library can be saved as a checkpoint for it"
        raise MoecError("M206", what, self.text, "compile it without saving")

    def save_gguf(self, program: Program, file: Path, floats: str) -> Sequence[str]:
        """Write a rewritten program as a GGUF file that does not exist, its plain matrices as `floats`; returns what
        was written, a line each.

        Raises:
            MoecError: M206 where the form does not hold the program; M210 when the file cannot be written; M301 where
                the package that writes it is missing.
        """
        what = "only a model of the transformers library can be written as a GGUF file"
        raise MoecError("M206", what, self.text, "compile it without --save-gguf")

    @classmethod
    def read_tokenizer(cls, folder: Path, text: str) -> Tokenizer | None:
        """The tokenizer in an engine's folder, else with the model of this name, which may not be here; None where this
        class finds none. Raises M204 when it does not load."""
        return None

    @classmethod
    def read_facts(cls, folder: Path, text: str, inputs: Sequence[Input]) -> ModelFacts | None:
        """The facts that an engine's files state, else those of the model of this name, with the engine's inputs; None
        where this class finds none. Raises M204 when the files are broken."""
        return None

    def sample(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random valid inputs of these sizes; masks have padding in all rows but the first where there is room."""
        generator = torch.Generator().manual_seed(seed)
        sizes = with_encoder(dynamic_dimensions(self.inputs), {PAST: 0, **sizes})
        return {i.name: sample_input(i, self.domains.get(i.name), sizes, generator) for i in self.inputs}
