"""Which mixture-of-experts architecture of transformers holds an upcycled model, weight by weight, and which does not,
and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moec.dialect import Routing
from moec.weights.lazy import Weight


@dataclass(frozen=True)
class UpcycledLayer:
    """One upcycled layer: router `[E, H]`, w_in `[E, 2*I, H]` (gate rows first), w_out `[E, H, I]`, lazy."""

    router: Weight
    w_in: Weight
    w_out: Weight


@dataclass(frozen=True)
class Upcycled:
    """What is to be stored.

    Attributes:
        blocks: upcycled layers by index.
        layers: number of layers of the model.
        routing: the rule of all blocks.
        experts, intermediate: E and I of all blocks.
        copies: whether all experts compute the same (up to cutting), so that only the sum of the weights matters.
        dtype: in which it will be stored.
        tied: whether the experts of a group share a router row, as before training: the best experts are then those of
            the best groups, and a router that knows no groups chooses them, too.
    """

    blocks: dict[int, UpcycledLayer]
    layers: int
    routing: Routing
    experts: int
    intermediate: int
    copies: bool
    dtype: torch.dtype
    tied: bool = True

    @property
    def dense_layers(self) -> list[int]:
        """Layers that stay as they were."""
        return [i for i in range(self.layers) if i not in self.blocks]


@dataclass(frozen=True)
class Container:
    """An architecture that may hold the result.

    Attributes:
        model_type: its name in transformers.
        sources: dense architectures whose every part it has.
        refuse: why it cannot hold this model, or None.
        entries: entries of its config beside those that carry over by name.
        expert: names of an expert's gate, up and down matrix in its files, below the layer's `block`.
    """

    model_type: str
    sources: tuple[str, ...]
    refuse: Callable[[Any, Upcycled], str | None]
    entries: Callable[[Any, Upcycled], dict[str, Any]]
    block: str
    expert: tuple[str, str, str]


def choose(config: Any, model: Upcycled) -> Container | str:
    """The first container that holds the model exactly; or, as text, why none does."""
    fitting = [c for c in CONTAINERS if config.model_type in c.sources]
    if not fitting:
        return (
            f"no mixture-of-experts architecture of transformers has the norms, biases and gates of {config.model_type}"
        )
    reasons = [(c, c.refuse(config, model)) for c in fitting]
    return next(
        (c for c, reason in reasons if reason is None), "; ".join(f"{c.model_type}: {reason}" for c, reason in reasons)
    )


# ---------------------------------------------------------------------- what the architectures have
def _biases(config: Any) -> str | None:
    if getattr(config, "mlp_bias", False):
        return "its experts have no biases (mlp_bias)"
    return None


def slides(config: Any) -> set[bool]:
    """Whether the layers have a sliding window: one answer if they agree."""
    kinds = getattr(config, "layer_types", None)
    return (
        {kind == "sliding_attention" for kind in kinds}
        if kinds
        else {getattr(config, "sliding_window", None) is not None}
    )


def _groups(model: Upcycled) -> str | None:
    if not model.tied:
        return (
            f"its router chooses among all experts, this one {model.routing.top_groups} of {model.routing.groups} "
            "groups first, and training has made the rows of a group differ"
        )
    # routers in the activations' dtype: in 16 bits the logits of two groups tie in about 1 % of the tokens, and shards
    # get mixed
    if model.routing.groups > 1 and model.dtype.itemsize < 4:
        return (
            f"its router computes in {str(model.dtype)[6:]}, too coarse to keep the {model.routing.groups} groups "
            "of shards apart"
        )
    return None


def _refuse_mixtral(config: Any, model: Upcycled) -> str | None:
    if getattr(config, "attention_bias", False):
        return "its attention has no biases (attention_bias)"
    if model.dense_layers:
        return f"all its layers have experts, but layers {model.dense_layers} are dense"
    return _biases(config) or _groups(model)


def _refuse_qwen3_moe(config: Any, model: Upcycled) -> str | None:
    if len(slides(config)) > 1:
        return "its layers share one kind of attention, but some of these slide and some don't"
    return _groups(model)


def _refuse_glm4_moe(config: Any, model: Upcycled) -> str | None:
    if True in slides(config):
        return "it has no sliding window"
    if getattr(config, "attention_bias", False):
        return "its attention has no bias on the output (attention_bias)"
    if model.dense_layers != list(range(len(model.dense_layers))):
        return f"only its first layers can be dense, but layers {model.dense_layers} are"
    if not model.copies:
        return "its router scores with a sigmoid, which weighs experts that differ otherwise than softmax"
    if model.experts < 2:
        return "its router wants two experts at least"
    return _biases(config)


def _mixtral(_config: Any, model: Upcycled) -> dict[str, Any]:
    return {
        "intermediate_size": model.intermediate,
        "num_local_experts": model.experts,
        "num_experts_per_tok": model.routing.top_k,
    }


def _qwen3_moe(config: Any, model: Upcycled) -> dict[str, Any]:
    return {
        "moe_intermediate_size": model.intermediate,
        "num_experts": model.experts,
        "num_experts_per_tok": model.routing.top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": model.dense_layers,
        "use_sliding_window": True in slides(config),
    }


def _glm4_moe(config: Any, model: Upcycled) -> dict[str, Any]:
    return {
        "moe_intermediate_size": model.intermediate,
        "n_routed_experts": model.experts,
        "num_experts_per_tok": model.routing.top_k,
        "n_group": model.routing.groups,
        "topk_group": model.routing.top_groups,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_shared_experts": 0,
        "num_mtp_layers": 0,
        "first_k_dense_replace": len(model.dense_layers),
        "attention_bias": config.model_type == "qwen2",
        "use_qk_norm": config.model_type == "qwen3",
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope_parameters": {**config.rope_parameters, "partial_rotary_factor": 1.0},
    }


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
CONTAINERS = (
    Container("mixtral", ("llama", "mistral"), _refuse_mixtral, _mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
    Container("qwen3_moe", ("qwen3",), _refuse_qwen3_moe, _qwen3_moe, "mlp", PROJECTIONS),
    Container("glm4_moe", ("llama", "mistral", "qwen2", "qwen3"), _refuse_glm4_moe, _glm4_moe, "mlp", PROJECTIONS),
)
