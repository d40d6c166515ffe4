"""The interface of a checkpoint format: which `quantization_config` it reads, and which tensors make up a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from moec.weights.lazy import Weight


class CheckpointFormat(ABC):
    """How weights are stored in a folder whose config.json has a `quantization_config`.

    One class a file in `moec/huggingface/formats/`, named as the file; or an entry point of the group `moec.formats`.

    Class attributes:
        methods: the values of `quant_method` that the format goes by.
    """

    methods: ClassVar[tuple[str, ...]]

    @abstractmethod
    def why_not(self, config: Mapping[str, Any]) -> str:
        """Why a folder with this `quantization_config` cannot be read, as a part of a sentence; empty when it can."""

    @abstractmethod
    def decode(self, stored: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
        """The checkpoint's tensors with every weight under its own name, decoded when it is read.

        A weight from `moec.weights.lazy.decoded` keeps its codes: it stays packed in the captured graph. Any other is
        captured as the numbers that it stands for.

        Args:
            stored: name in the files -> lazy tensor.
            config: a `quantization_config` that `why_not` has nothing against.

        Raises:
            MoecError: M205 when tensors are missing or do not fit each other, M206 for what cannot be expressed.
        """


def are_scales(weight: Weight) -> bool:
    """Whether a tensor's numbers can be scales: floats of 16 bits at least."""
    return weight.dtype.is_floating_point and weight.dtype.itemsize > 1
