"""A model that only its config describes: it is captured as one with weights is, and its weights refuse to be read."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.files.regular import read_bytes
from moec.huggingface.reading import skeleton
from moec.huggingface.reading.bare import bare, described
from moec.huggingface.reading.folder import read_config, resolve
from moec.huggingface.reading.text_part import layers_of
from moec.program.program import META
from moec.weights.lazy import Weight


class Described:
    """The model of a config, cut to the first layers that hold every kind of layer that it has.

    Args:
        text: see `moec.huggingface.reading.bare.bare_model`.

    Attributes:
        text: how the model was named, and how far it is cut.
        stands_for: for each layer of the config, the first one that is of its kind.
        loaded_bytes: memory that the whole model's reference would take, see `ModelFolder.loaded_bytes`.
        template: the cut model, on the meta device. layers: how many layers it has. of: how many the config says.
    """

    def __init__(self, text: str) -> None:
        self._class, config = described(text)
        whole = bare(self._class, config, text)
        self.loaded_bytes = (2 if _is_quantized(Path(text)) else 1) * _float_bytes(whole)
        kinds = kinds_of(whole)
        self.layers, self.of = _to_see(kinds), len(kinds)
        self.stands_for = tuple(kinds.index(kind) for kind in kinds)
        self._config = cut_to(config, self.layers) if 0 < self.layers < self.of else config
        self.text = f"{text}, its first {self.layers} of {self.of} layers" if 0 < self.layers < self.of else text
        self.template = bare(self._class, self._config, text)

    @property
    def size_bytes(self) -> int:
        """Of the parameters, in the config's dtype."""
        return sum(p.nbytes for p in self.template.parameters())

    def hashes(self) -> dict[str, str]:
        """No weights, so none."""
        return {}

    def captured(self, dtype: torch.dtype) -> tuple[Any, dict[str, Weight]]:
        """A private model on the meta device, and weights that cannot be read."""
        model = skeleton.build(self._class, self._config, dtype)
        saved = model.state_dict(keep_vars=True)
        weights = {name: self._unread(name, value) for name, value in saved.items() if value.device == META}
        for target in model.all_tied_weights_keys:  # nothing says that a checkpoint holds two
            weights.pop(target, None)
        skeleton.tie(model, weights)
        return model, weights

    def loaded(self) -> Any:
        """Raises M205: there is nothing to load."""
        raise self._refusal("model")

    def _unread(self, name: str, value: Tensor) -> Weight:
        def read(start: int, stop: int) -> Tensor:
            raise self._refusal(name)

        return Weight(tuple(value.shape), value.dtype, name, read)

    def _refusal(self, where: str) -> MoecError:
        return MoecError(
            "M205", "only a config describes this model: it has no weights", where, "give the whole folder"
        )


def _is_quantized(place: Path) -> bool:
    raw = json.loads(read_bytes(place)) if place.is_file() else read_config(resolve(str(place)))
    return bool(raw.get("quantization_config"))


def _float_bytes(model: nn.Module) -> int:
    return sum(4 * p.numel() for p in model.parameters())


def layers_to_see(model: nn.Module) -> tuple[int, int]:
    """How many of a model's first layers hold every kind of layer that it has, and how many it has; layers of a kind
    differ in their weights only."""
    kinds = kinds_of(model)
    return _to_see(kinds), len(kinds)


def kinds_of(model: nn.Module) -> list[Hashable]:
    """What tells each layer from those of another kind."""
    return [_kind(layer) for _, layer in layers_of(model)]


def _to_see(kinds: Sequence[Hashable]) -> int:
    return max((kinds.index(kind) for kind in set(kinds)), default=-1) + 1


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """What tells layers apart: their modules, the shapes of their parameters, and the windows that they name."""
    shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
    modules = tuple(type(m).__name__ for m in layer.modules())
    windows = tuple(str(getattr(m, "sliding_window", None)) for m in layer.modules())
    return (modules, shapes, windows)


def cut_to(config: Any, layers: int) -> Any:
    """The config of the first layers; lists with an entry a layer become shorter, too, and so do loops that are
    unrolled (Sinkhorn's iterations of DeepSeek-V4)."""
    config = deepcopy(config)
    text = config.get_text_config()
    before = text.num_hidden_layers
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == before and not name.startswith("_"):
            setattr(text, name, value[:layers])
        elif isinstance(value, int) and name.endswith("_iters"):  # each is in the graph, and none is like no other
            setattr(text, name, min(value, 2))
    text.num_hidden_layers = layers
    return config
