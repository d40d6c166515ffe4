"""A model's shape on paper, from its config alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moec.huggingface.on_paper import on_paper
from moec.huggingface.parts import mixtures_of, tensors_of
from moec.huggingface.reading.states import of_layer, states_of
from moec.planning.layer_names import layer_number
from moec.planning.shape import Shape, Tensor

_PREDICTING = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")


def shape_of(text: str) -> Shape:
    """The shape of the model that a config.json, a folder or a cached hub id describes; no weight is read.

    Raises:
        MoecError: see `on_paper`; M204 and M206 for mixtures that do not say their sizes.
    """
    found = on_paper(text)
    if isinstance(found, Shape):
        return found
    model, notes = found
    return replace(shape_of_model(model), notes=notes)


def shape_of_model(model: Any) -> Shape:
    """The same of a `PreTrainedModel`, wherever its parameters lie."""
    config = model.config.get_text_config()
    mixtures = mixtures_of(model)
    tensors = tensors_of(model, mixtures)
    states, unknown = states_of(model)
    table = model.get_input_embeddings()
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    heads, size = max((_head(of_layer(config, number)) for number in range(layers)), default=(0, 0))
    return Shape(
        type(model).__name__,
        tensors,
        mixtures,
        states,
        int(config.hidden_size),
        layers,
        int(table.weight.shape[0]) if hasattr(table, "weight") else 0,
        heads,
        size,
        int(getattr(config, "max_position_embeddings", 0) or 0),
        _multi_token(config, tensors),
        unknown,
    )


def _head(config: Any) -> tuple[int, int]:
    """Heads of a layer's queries, and the size of what each takes from the values."""
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return heads, int(getattr(config, "v_head_dim", None) or size)


def _multi_token(config: Any, tensors: tuple[Tensor, ...]) -> int:
    """Parameters of the layers for multi-token prediction: each is a layer like the last one, a projection of two
    hidden vectors to one, and three norms (DeepSeek-V3, arXiv 2412.19437, figure 3). Where a config names the kinds of
    its blocks (Nemotron-H), it is one block of each."""
    count = next((int(n) for name in _PREDICTING if (n := getattr(config, name, None))), 0)
    count *= int(getattr(config, "mtp_transformer_layers", None) or 1)
    layers: dict[int, int] = {}
    for tensor in tensors:
        number = layer_number(tensor.name)
        if number is not None and tensor.part != "vision and audio":
            layers[number] = layers.get(number, 0) + tensor.count
    if not count or not layers:
        return 0
    kinds, own = list(getattr(config, "layers_block_type", None) or ()), getattr(config, "mtp_layers_block_type", None)
    like = sum(layers[kinds.index(k)] for k in own if k in kinds) if own and kinds else layers[max(layers)]
    return count * (like + 2 * config.hidden_size**2 + 3 * config.hidden_size)
