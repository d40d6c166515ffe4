"""Hugging Face models as a `Source`: captured without loading, compared with the untouched model."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.account import Account, LeaveOut, LeftOut
from moec.frontend.domain import Domain
from moec.frontend.source import Opening, Source, Tokenizer
from moec.huggingface.account import account_of, read_by, unread_tensors
from moec.huggingface.capturing import captured
from moec.huggingface.companions import describe, write_companions
from moec.huggingface.inputs.asked import Asked
from moec.huggingface.inputs.calls import expose
from moec.huggingface.inputs.given import Given
from moec.huggingface.inputs.signature import Signature, capture_sizes, only_features, part_signature
from moec.huggingface.opened import alike, home_of, origin_of
from moec.huggingface.operators.adapters import explain
from moec.huggingface.operators.capturable import capturable
from moec.huggingface.origin import Origin
from moec.huggingface.reading.described import Described
from moec.huggingface.reading.folder import ModelFolder
from moec.huggingface.reading.loaded import Loaded
from moec.huggingface.reading.peft_adapter import unwrapped
from moec.huggingface.reading.quantized import keep_packed
from moec.huggingface.reading.returned import original_of, watched
from moec.huggingface.retried import captured_somehow, explained, without_cache
from moec.huggingface.shape import shape_of
from moec.huggingface.states.cache import cache_signature, has_cache
from moec.huggingface.states.encoder_decoder import has_parts, keep_to_states, whole_inputs
from moec.huggingface.tiny import save_tiny
from moec.huggingface.tokenizer import load_tokenizer, text_facts
from moec.huggingface.untouched import UntouchedEngine
from moec.layouts.facts import ModelFacts
from moec.planning.shape import Shape
from moec.program.encoder_decoder import PARTS, cross_inputs
from moec.program.program import Input, Program
from moec.progress import Progress

NO_CACHE = ("no cache of keys and values: the inputs that were given are not input_ids and attention_mask of any size",)


class HuggingFaceSource(Source):
    """A model of the transformers library."""

    leaves_out = True

    def __init__(
        self,
        text: str,
        origin: Origin,
        cache: bool = True,
        leave_out: LeaveOut | None = None,
        given: Given | None = None,
        part: str = "",
    ) -> None:
        self.part = part
        self.text, self.origin, self._leave_out, self._given = text, origin, leave_out or LeaveOut(), given
        self._asked = Asked(origin, self._leave_out, given)
        self.snapshot = getattr(origin, "snapshot", None)
        self._read: set[int] = set()
        self._unread: Sequence[LeftOut] = ()
        self._explained: MoecError | None = None
        self.size_bytes = origin.size_bytes
        decoder = has_cache(origin.template) and not only_features(origin.template, self._leave_out)
        self._has_parts = cache and given is None and not part and has_parts(origin.template)
        self._asks_cache = cache
        self._cache = cache and decoder and (given is None or given.goes_with_a_cache)
        self._own_attention = decoder and not self._cache
        self._without = NO_CACHE if cache and decoder and not self._cache else ()
        if not self._cache and not part:
            self.signature = self._asked.signature()  # refuses other modalities at once

    @classmethod
    def opens(cls, model: Any, opening: Opening) -> bool:
        """Any text, and a `PreTrainedModel`."""
        loaded = hasattr(model, "config") and hasattr(model, "base_model_prefix")
        return loaded if isinstance(model, nn.Module) else isinstance(model, str | Path)

    @classmethod
    def takes_inputs(cls, model: Any) -> bool:
        """A model in memory comes with samples; those of a folder's model take the place of its own."""
        return True

    @classmethod
    def files(cls, model: str) -> tuple[Path, ...]:
        """The config, which decides what is built. The weights are compared when they are open: they are only data."""
        config = Path(model) / "config.json"
        return (config,) if config.is_file() else ()

    @classmethod
    def home(cls, model: str) -> Path:
        return home_of(model)

    @classmethod
    def shape(cls, model: str) -> Shape | None:
        return shape_of(model)

    @classmethod
    def described(cls, model: str) -> HuggingFaceSource:
        origin = Described(model)
        source = HuggingFaceSource(origin.text, origin)  # whole, for text alone
        source.stands_for = origin.stands_for
        return source

    @classmethod
    def save_tiny(cls, model: str, folder: Path, seed: int) -> int:
        return save_tiny(model, folder, seed)

    @classmethod
    def open(cls, model: Any, opening: Opening) -> HuggingFaceSource:
        """Open a model directory, a GGUF file, or a hub id in the local cache; nothing is downloaded, no weight read.
        With a cache, a model that generates text has its states as inputs and outputs.

        Raises:
            MoecError: M204 no such model, M205 broken weights, M206 unknown architecture, M209 code or pickles without
                permission.
        """
        if isinstance(model, nn.Module):
            return cls.from_model(model, opening.cache, opening.leave_out, Given.of(opening), opening.part)
        wanted = LeaveOut(opening.leave_out)
        origin = origin_of(str(model), opening, wanted)
        return cls.of_origin(str(model), origin, opening.cache, wanted, Given.of(opening), opening.part)

    @classmethod
    def of_origin(
        cls, text: str, origin: Origin, cache: bool, leave_out: LeaveOut, given: Given | None, part: str
    ) -> HuggingFaceSource:
        """The source of what lies at an origin, see `open`."""
        return cls(text, origin, cache, leave_out, given, part)

    @classmethod
    def from_model(
        cls, model: Any, cache: bool = True, leave_out: Sequence[str] = (), given: Given | None = None, part: str = ""
    ) -> HuggingFaceSource:
        """A source of a `PreTrainedModel` in memory, or of the one in a `PeftModel`; it is never changed or copied. Its
        inputs are those that are `given`, or those that a folder's model has. Raises M217 for an adapter that is not in
        the model's weights."""
        model = unwrapped(model)
        return cls.of_origin(type(model).__name__, Loaded(model), cache, LeaveOut(leave_out), given, part)

    @cached_property
    def signature(self) -> Signature:
        """Inputs and their domains; those of a cache are found by a run on the meta device."""
        with explained(self._refusal):
            if self.part:
                return part_signature(capturable(self.origin, torch.float32, own_attention=True)[0], self.part)
            model = capturable(self.origin, torch.float32, self._own_attention)[0] if self._cache else None
            caches = cache_signature(model) if self._cache else ()
        return self._asked.signature(caches)

    def parts(self) -> dict[str, Source]:
        """The encoder and the decoder of a model that writes text with both; nothing for any other, or without a
        cache."""
        part = partial(HuggingFaceSource, self.text, self.origin, True, self._leave_out)
        return {name: part(part=name) for name in PARTS} if self._has_parts else {}

    @property
    def _capture_sizes(self) -> dict[str, int]:
        given = self._given.sizes(self.inputs) if self._given else {}
        return {**self.signature.sizes, **given, **capture_sizes(self.inputs)}

    @property
    def scale(self) -> Mapping[str, int]:  # type: ignore[override]
        return self.signature.scale

    @cached_property
    def _account(self) -> Account:
        otherwise, fixed = self._asked.otherwise(self.signature), self.signature.fixed
        inputs = whole_inputs(self.origin.template) if self.part else self.inputs
        return account_of(self.origin, (i.name for i in inputs), self._leave_out, otherwise, fixed)

    def account(self) -> Account:
        """See `moec.huggingface.account.account_of`; of a captured model, with what its graph reads nothing of."""
        found, known = self._account, {x.name for x in self._account.left_out}
        more = tuple(x for x in self._unread if x.name not in known)
        notes = (*found.notes, *self._without, *self._asked.notes(self.signature))
        names = tuple(i.name for i in self.inputs) if self.part else found.inputs
        return replace(found, used=found.used - len(more), left_out=(*found.left_out, *more), notes=notes, inputs=names)

    @property
    def inputs(self) -> tuple[Input, ...]:  # type: ignore[override]  # looked for when somebody asks
        return self.signature.inputs

    @property
    def domains(self) -> dict[str, Domain]:  # type: ignore[override]
        return self.signature.domains

    @property
    def loaded_bytes(self) -> int:
        return int(getattr(self.origin, "loaded_bytes", self.size_bytes))

    @cached_property
    def hashes(self) -> dict[str, str]:  # type: ignore[override]  # the files are read only when somebody asks
        return self.origin.hashes()

    def reference(self) -> Engine:
        """The untouched model in eager PyTorch and float32, weights loaded."""
        return UntouchedEngine(self.origin.loaded(), self.signature, self.sample(self._capture_sizes))

    def alike(self, model: str) -> HuggingFaceSource:
        origin = alike(self.origin, model)
        return type(self)(model, origin, self._asks_cache, self._leave_out, self._given, self.part)

    def reference_of(self, program: Program) -> Engine | None:
        from moec.huggingface.saving.loaded_again import loaded_from

        model = loaded_from(program, self)
        return model and UntouchedEngine(model, self.signature, self.sample(self._capture_sizes))

    def facts(self) -> ModelFacts:
        return describe(self.origin, self.text, self.inputs)

    def write_companions(self, folder: Path) -> None:
        if not self.part:  # of two parts, they lie beside both
            write_companions(self.origin, folder)

    def save_checkpoint(self, program: Program, folder: Path, hf_format: str, progress: Progress) -> Sequence[str]:
        """Upcycled for transformers, quantized for vLLM, see `moec.huggingface.saving.save`."""
        from moec.huggingface.saving.save import plan_hf, write_planned

        return write_planned(plan_hf(program, self, hf_format=hf_format), folder, progress=progress).said()

    def save_gguf(self, program: Program, file: Path, floats: str) -> Sequence[str]:
        """For llama.cpp, see `moec.huggingface.gguf.write`."""
        from moec.huggingface.gguf.write import save_gguf

        return save_gguf(program, file, self, floats)

    @classmethod
    def read_tokenizer(cls, folder: Path, text: str) -> Tokenizer | None:
        return load_tokenizer(folder, text)

    @classmethod
    def read_facts(cls, folder: Path, text: str, inputs: Sequence[Input]) -> ModelFacts | None:
        return text_facts(folder, text, inputs)

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """The model as a Program, its experts as `moec::experts`. Raises M205 where a weight is missing, M206 for
        experts that moec does not know, M207 for a model that torch.export cannot take."""
        with explained(self._refusal):
            return captured_somehow(partial(self._capture, dtype), not self._cache)

    def _refusal(self, error: MoecError) -> MoecError:
        """A refusal with a way out that was tried. Each is explained once: what explains it captures, too."""
        if error.code not in ("M206", "M207") or error is self._explained:
            return error
        self._explained = self._way_out(error)
        return self._explained

    def _way_out(self, error: MoecError) -> MoecError:
        """The refusal with its way out: without a cache, or with a value of what sizes hang on."""
        other = partial(HuggingFaceSource, self.text, self.origin, False, self._leave_out)
        if self._cache or self.part:
            return without_cache(error, lambda: other(self._given).capture())
        return self._asked.with_values(error, self.signature, lambda given: other(given).capture())

    def _capture(
        self, dtype: torch.dtype, attention: str = "", device: str = "", own_attention: bool = False
    ) -> Program:
        self._own_attention = self._own_attention or own_attention
        device = device or ("cpu" if self.signature.fixed else "meta")  # what has values meets no tensor without
        model, weights = capturable(self.origin, dtype, self._own_attention)
        if attention:
            model.set_attn_implementation(attention)
        kinds = watched(model)
        expose(model, self.signature)
        if device != "meta":
            model.to_empty(device=device)  # address space only: torch.export never touches the values
        sample = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.sample(self._capture_sizes).items()}
        with explained(lambda error: explain(model, error) or error):
            program, self.recalled_from = captured(
                self.origin, model, weights, sample, self.signature.dynamic(), self.text, kinds,
                dtype, self._own_attention, attention, device, self.inputs,
                {name: value.tolist() for name, value in self.signature.fixed.items()},
            )  # fmt: skip
        self._read = read_by(program)
        if not self.part:
            self._note_unread(self._read)
        if cross_inputs(self.inputs):
            keep_to_states(program)
        keep_packed(program)
        program.original = original_of(program, model, kinds, self)
        return program

    def _note_unread(self, read: Container[int]) -> None:
        """Keep for the account which tensors of the files are not among those that were `read`, see `read_by`; of a
        folder with an adapter, or of quantized files, nothing is said."""
        origin = self.origin
        if isinstance(origin, ModelFolder) and origin.adapter is None and not origin.quantized:
            self._unread = unread_tensors(origin.checkpoint.weights, read)
