"""Which part of a model reads and writes text: its decoder, beside what sees and hears; and the layers of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from moec.planning.layer_names import LAYER


def text_part(model: Any) -> str:
    """The dotted name of the module that holds a `PreTrainedModel`'s text decoder, with a dot behind it; empty where
    the model is for text as a whole."""
    if model.config.get_text_config() is model.config or model.config.is_encoder_decoder:
        return ""
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return f"{name}." if name else ""


def layers_of(model: Any) -> Iterator[tuple[int, nn.Module]]:
    """Every layer of a model's text part with its number, in order."""
    inside = text_part(model)
    for name, module in model.named_modules():
        match = LAYER.match(name) if name.startswith(inside) else None
        if match and match.end() == len(name):
            yield int(match[3]), module
