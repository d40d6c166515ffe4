"""What a source of transformers models reads them from."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from moec.weights.lazy import Weight


class Origin(Protocol):
    """Where a model's structure and weights come from: a `ModelFolder` or a `Loaded` model."""

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
