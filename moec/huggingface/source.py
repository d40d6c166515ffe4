"""Hugging Face models as a `Source`: captured without loading, compared with the untouched model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from moec.engine import Engine
from moec.errors import MoecError
from moec.frontend import capture
from moec.huggingface import skeleton
from moec.huggingface.adapters import adapt, explain
from moec.huggingface.experts import use_moec_experts
from moec.huggingface.folder import Folder
from moec.huggingface.loaded import Loaded
from moec.huggingface.signature import CAPTURE_SIZES, expose, named_call, signature_of
from moec.program import Program
from moec.source import Source
from moec.weights import Weight


class Origin(Protocol):
    """Where a model's structure and weights come from: a `Folder` or a `Loaded` model."""

    @property
    def template(self) -> Any:
        """A `PreTrainedModel` to read the signature from; its weights may be missing."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights as stored."""

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files by name."""

    def captured(self, dtype: torch.dtype) -> tuple[Any, dict[str, Weight]]:
        """A private model on the meta device and its lazy weights."""

    def loaded(self) -> Any:
        """The untouched model in float32."""


def open_source(text: str, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> HuggingFaceSource:
    """Open a model directory, or a hub id that is in the local cache; nothing is downloaded and no weight is read.

    Raises:
        MoecError: M204 no such model, M205 broken weights, M206 unknown architecture, M209 code or pickles without permission.
    """
    return HuggingFaceSource(text, Folder(text, trust_remote_code, allow_pickle))


class HuggingFaceSource(Source):
    """A model of the transformers library."""

    def __init__(self, text: str, origin: Origin) -> None:
        self.text, self.origin = text, origin
        self.size_bytes = origin.size_bytes
        self.signature = signature_of(origin.template)
        self.inputs, self.domains = self.signature.inputs, self.signature.domains

    @classmethod
    def from_model(cls, model: Any) -> HuggingFaceSource:
        """A source of a `PreTrainedModel` that is in memory; it is read, never changed, and its tensors are not copied."""
        return cls(type(model).__name__, Loaded(model))

    @cached_property
    def hashes(self) -> dict[str, str]:  # type: ignore[override]  # the files are read only when somebody asks
        """SHA-256 of the files by name."""
        return self.origin.hashes()

    def reference(self) -> Engine:
        """The untouched model in eager PyTorch and float32, weights loaded."""
        return UntouchedEngine(self.origin.loaded(), self)

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """The model as a Program, its experts as `moec::experts`.

        Raises:
            MoecError: M205 a weight is missing, M206 experts that moec does not know, M207 a model that torch.export cannot take.
        """
        try:
            return self._capture(dtype)
        except MoecError as error:
            if "lifted_tensor" in error.where:  # x[:, [-2]] makes a tensor on x's device, where meta keeps no values
                return self._capture(dtype, device="cpu")
            if error.code != "M207":
                raise
            return self._capture(dtype, attention="eager")

    def _capture(self, dtype: torch.dtype, attention: str = "", device: str = "meta") -> Program:
        model, weights = self.origin.captured(dtype)
        if attention:
            model.set_attn_implementation(attention)
        skeleton.take_buffers(model, weights)
        skeleton.share(model, weights)
        adapt(model, weights)
        use_moec_experts(model, weights)
        expose(model, self.signature)
        if device != "meta":
            model.to_empty(device=device)  # address space only: torch.export never touches the values
        sample = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.sample(CAPTURE_SIZES).items()}
        try:
            return capture(model, sample, self.signature.dynamic(), weights=weights, source=self.text)
        except MoecError as error:
            better = explain(model, error)
            if better is None:
                raise
            raise better from error


class UntouchedEngine(Engine):
    """A model exactly as transformers runs it."""

    def __init__(self, model: Any, source: HuggingFaceSource) -> None:
        self.name, self.inputs, self.module = "eager (transformers)", source.inputs, model
        self._call = named_call(model)
        self.outputs = tuple(self.run(source.sample(CAPTURE_SIZES)))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            return self._call(**inputs)
