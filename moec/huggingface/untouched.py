"""The reference of a transformers model: the untouched model in eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moec.execution.anew import CalledAnew
from moec.execution.eager_anew import EagerAnew
from moec.execution.vision_language import of_text
from moec.huggingface.inputs.calls import call_of
from moec.huggingface.inputs.signature import Signature


class UntouchedEngine(EagerAnew):
    """A model exactly as transformers runs it; one that changes itself while it runs is made anew for each input."""

    def __init__(self, model: Any, signature: Signature, sample: Mapping[str, Tensor]) -> None:
        """`sample` is run once, to see which outputs there are."""
        self.name, self.inputs, self.module = "eager (transformers)", signature.inputs, model
        self._call = CalledAnew(model, lambda other: call_of(other, signature))
        self.outputs = tuple(self.run(sample))


class UntouchedSeeing(UntouchedEngine):
    """A model of text and images, whole; a call without images is one of text alone."""

    def check(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.fitting(of_text(self.inputs, inputs), inputs)
