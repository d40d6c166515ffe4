"""Carved models that a class of transformers holds as it is: one routed expert a token, beside shared ones.

Every class that chooses by softmax divides the weights of the chosen by their sum, so that one alone counts 1, as
carved experts do; of several it would weigh one more than the other. Qwen2-MoE has shared experts, dense layers where
they are asked for, and vLLM serves it. The gate of its shared experts is `sigmoid(w·x)`: with w = 0 that is one half,
which twice the last matrix makes up for without rounding.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from moec.dialect import Routing
from moec.huggingface.saving.carved import Form
from moec.huggingface.saving.containers import PROJECTIONS, Container, Upcycled, UpcycledLayer, slides
from moec.huggingface.saving.upcycled import plan_upcycled, target_config
from moec.program.program import Program
from moec.weights import lazy
from moec.weights.lazy import Weight

_LAYER = re.compile(r"^model\.layers\.(\d+)\.mlp$")
_ALWAYS = 1e3
_SOURCES = ("llama", "mistral", "qwen2")


def plan_stock(
    program: Program, forms: dict[str, Form], config: Any, dtype: torch.dtype | None
) -> tuple[Any, dict[str, Weight]] | str:
    """The config and the weights of a Qwen2-MoE; or, as text, why it does not hold the model exactly."""
    form, shared = next(iter(forms.values())), _shared(program, next(iter(forms)))
    reason = _refuse(program, forms, config, form, shared)
    if reason is not None:
        return reason
    layers = {int(m[1]): path for path in forms if (m := _LAYER.match(path))}
    model = Upcycled(
        blocks={layer: _routed(program, path, shared, form.experts) for layer, path in layers.items()},
        layers=config.num_hidden_layers,
        routing=Routing(1),
        experts=form.experts - shared,
        intermediate=form.width,
        copies=False,
        dtype=dtype or program.weights[f"{next(iter(forms))}.experts.w_in"].dtype,
    )
    entries = {
        "shared_expert_intermediate_size": shared * form.width,
        "moe_intermediate_size": form.width,
        "num_experts": model.experts,
        "num_experts_per_tok": 1,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": model.dense_layers,
        "qkv_bias": True,  # vLLM has them always
        "use_sliding_window": False,
    }
    container = Container("qwen2_moe", _SOURCES, lambda *_: None, lambda *_: entries, "mlp", PROJECTIONS)
    target = target_config(config, container, model)
    extra = {
        name: w for layer, path in layers.items() for name, w in _beside(program, layer, path, form, shared).items()
    }
    return target, plan_upcycled(program, target, container, model, extra | _biases(program, config, target))


def _refuse(program: Program, forms: dict[str, Form], config: Any, form: Form, shared: int) -> str | None:
    if config.model_type not in _SOURCES or True in slides(config) or getattr(config, "attention_bias", False):
        return f"its attention is not that of a {config.model_type} with these settings"
    if getattr(config, "head_dim", None) not in (None, config.hidden_size // config.num_attention_heads):
        return "its heads are as wide as the hidden size says"
    if not form.gated or form.activation != "silu" or any(f"{path}.experts.b_in" in program.weights for path in forms):
        return "its experts are gated by SiLU and have no biases"
    if set(forms.values()) != {form} or any(_shared(program, path) != shared for path in forms):
        return "its layers have one number of experts"
    if form.top_k != shared + 1:
        return f"it weighs several routed experts by their scores, and here {form.top_k - shared} count 1 each"
    for path in forms:
        means = program.weights[f"{path}.experts.b_out"].load(), program.weights[f"{path}.experts.constant"].load()
        biases = program.weights[f"{path}.router.bias"].load()[shared:]
        if any(bool(value.any()) for value in means):
            return "its experts have no biases, which keep what others would have added (compensate=False, refit=False)"
        if bool((biases != biases[0]).any()):
            return "its router has no biases (router=mean-row)"
    return None


def _shared(program: Program, path: str) -> int:
    """How many experts every token uses, which stand first: their score is a constant that no other reaches."""
    router, bias = (program.weights[f"{path}.router.{n}"].load() for n in ("weight", "bias"))
    return int(((bias >= _ALWAYS) & ~router.bool().any(1)).sum())


def _routed(program: Program, path: str, shared: int, experts: int) -> UpcycledLayer:
    router, w_in, w_out = (program.weights[f"{path}.{n}"] for n in ("router.weight", "experts.w_in", "experts.w_out"))
    left = list(range(shared, experts))
    return UpcycledLayer(lazy.rows(router, shared, experts), lazy.take(w_in, left), lazy.take(w_out, left))


def _beside(program: Program, layer: int, path: str, form: Form, shared: int) -> dict[str, Weight]:
    """The shared experts as one network, and its gate."""
    w_in, w_out = program.weights[f"{path}.experts.w_in"], program.weights[f"{path}.experts.w_out"]
    firsts = [lazy.select(w_in, e) for e in range(shared)]
    start, width = f"model.layers.{layer}.mlp.shared_expert", form.width
    none = lazy.zeros((0, form.hidden), w_in.dtype)
    gate, up = (lazy.concat([lazy.rows(w, at, at + width) for w in firsts], 0) if shared else none for at in (0, width))
    lasts = [lazy.scale(lazy.select(w_out, e), 2.0) for e in range(shared)]
    down = lazy.concat(lasts, 1) if shared else lazy.zeros((form.hidden, 0), w_out.dtype)
    parts = dict(zip(PROJECTIONS, (gate, up, down), strict=True))
    return {f"{start}.{name}.weight": w for name, w in parts.items()} | {
        f"{start}_gate.weight": lazy.zeros((1, form.hidden), w_in.dtype)
    }


def _biases(program: Program, config: Any, target: Any) -> dict[str, Weight]:
    """Zeros for biases that only the class has."""
    size = config.hidden_size // config.num_attention_heads
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    names = {
        f"model.layers.{i}.self_attn.{n}_proj.bias": size * h
        for i in range(config.num_hidden_layers)
        for n, h in heads.items()
    }
    return {name: lazy.zeros((rows,), target.dtype) for name, rows in names.items() if name not in program.weights}
