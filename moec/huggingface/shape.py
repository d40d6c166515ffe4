"""A model's shape on paper, from its config alone."""

from __future__ import annotations

from typing import Any

from moec.huggingface.reading.bare import bare_model
from moec.huggingface.reading.parts import mixtures_of, tensors_of
from moec.huggingface.reading.states import states_of
from moec.planning.shape import Mixture, Shape, Tensor


def shape_of(text: str) -> Shape:
    """The shape of the model that a config.json, a folder or a cached hub id describes; no weight is read.

    Raises:
        MoecError: see `bare_model`; M204 and M206 for mixtures that do not say their sizes.
    """
    return shape_of_model(bare_model(text))


def shape_of_model(model: Any) -> Shape:
    """The same of a `PreTrainedModel`, wherever its parameters lie."""
    config = model.config.get_text_config()
    mixtures = mixtures_of(model)
    tensors = tensors_of(model, mixtures)
    states, unknown = states_of(model)
    table = model.get_input_embeddings()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return Shape(
        type(model).__name__,
        tensors,
        mixtures,
        states,
        int(config.hidden_size),
        int(getattr(config, "num_hidden_layers", 0) or 0),
        int(table.weight.shape[0]) if hasattr(table, "weight") else 0,
        heads,
        int(getattr(config, "v_head_dim", None) or size),
        int(getattr(config, "max_position_embeddings", 0) or 0),
        _multi_token(config, mixtures, tensors),
        unknown,
    )


def _multi_token(config: Any, mixtures: tuple[Mixture, ...], tensors: tuple[Tensor, ...]) -> int:
    """Parameters of the layers for multi-token prediction: each is a layer like the last one, a projection of two
    hidden vectors to one, and three norms (DeepSeek-V3, arXiv 2412.19437, figure 3)."""
    count = int(getattr(config, "num_nextn_predict_layers", 0) or 0)
    if not count or not mixtures:
        return 0
    layer = mixtures[-1].module.rpartition(".")[0].rpartition(".")[0]
    like = sum(t.count for t in tensors if t.name.startswith(f"{layer}."))
    return count * (like + 2 * config.hidden_size**2 + 3 * config.hidden_size)
