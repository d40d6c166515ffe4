"""Shapes of models written by hand: nothing is built, so that they cost no time."""

from __future__ import annotations

from moec.planning.shape import Mixture, Shape, State, Tensor


def mixture(
    experts: int = 8, top_k: int = 2, layers: int = 4, hidden: int = 1024, width: int = 2048, name: str = "Mixture"
) -> Shape:
    """A decoder of 16 heads with 4 of keys, each of 64 numbers, and a mixture in every layer; Mixtral's form."""
    tensors = [Tensor("embed_tokens.weight", (32000, hidden), "input embedding")]
    tensors += [Tensor("lm_head.weight", (32000, hidden), "output head")]
    for layer in range(layers):
        at = f"layers.{layer}"
        for part, rows in (("q", 1024), ("k", 256), ("v", 256)):
            tensors.append(Tensor(f"{at}.self_attn.{part}_proj.weight", (rows, hidden), "attention"))
        tensors.append(Tensor(f"{at}.self_attn.o_proj.weight", (hidden, 1024), "attention"))
        tensors.append(Tensor(f"{at}.gate.weight", (experts, hidden), "router"))
        tensors.append(Tensor(f"{at}.experts.gate_up_proj", (experts, 2 * width, hidden), "routed experts"))
        tensors.append(Tensor(f"{at}.experts.down_proj", (experts, hidden, width), "routed experts"))
    count = experts * 3 * hidden * width
    mixtures = tuple(Mixture(f"layers.{n}.experts", experts, top_k, count, hidden, width) for n in range(layers))
    states = tuple(State("keys and values", 2 * 4 * 64) for _ in range(layers))
    return Shape(name, tuple(tensors), mixtures, states, hidden, layers, 32000, 16, 64, 8192)


def dense(layers: int = 4, hidden: int = 1024, width: int = 4096, name: str = "Dense") -> Shape:
    """The same decoder with one block of three matrices in every layer; Llama's form."""
    base = mixture(layers=layers, hidden=hidden)
    tensors = [t for t in base.tensors if t.part not in ("router", "routed experts")]
    for layer in range(layers):
        for part in ("gate", "up"):
            tensors.append(Tensor(f"layers.{layer}.mlp.{part}_proj.weight", (width, hidden), "dense FFN"))
        tensors.append(Tensor(f"layers.{layer}.mlp.down_proj.weight", (hidden, width), "dense FFN"))
    return Shape(name, tuple(tensors), (), base.states, hidden, layers, 32000, 16, 64, 8192)
