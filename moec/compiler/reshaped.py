"""The shape of a model after passes: read off the program that they plan, so no pass is described a second time.

The program is that of the first layers, which hold every kind of layer; what passes do to a layer they do to all of its
kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx

from moec.pipeline.passes import Plan
from moec.planning.layer_names import in_layer, layer_number
from moec.planning.shape import Mixture, Part, Shape, Tensor
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from moec.recognition.weight_roles import weight_uses
from moec.weights.weight import Weight

_PARTS: dict[str, Part] = {
    "router": "router", "gate": "shared experts", "experts": "routed experts", "attention": "attention",
    "dense": "dense FFN", "embeddings": "input embedding", "lm_head": "output head",
}  # fmt: skip


def reshaped(shape: Shape, captured: Program, plans: Sequence[Plan], stands_for: Sequence[int] = ()) -> Shape:
    """What a model's shape becomes.

    Args:
        shape: of the whole model.
        captured: the program before the passes, of its first layers. plans: what they plan.
        stands_for: for each layer of the model the layer of the program that is like it; empty where all are there.
    """
    if not plans:
        return shape
    last = plans[-1].program
    known = _known(shape, captured)
    before = _tensors(captured, [captured], known)
    after = _tensors(last, [captured, *(p.program for p in plans)], known)
    gone = [name for name in before if name not in after]
    changed = {name: tensor for name, tensor in after.items() if before.get(name) != tensor}
    numbers = [n for name in captured.weights if (n := layer_number(name)) is not None]
    layers = stands_for or range(1 + max(numbers, default=-1))
    removed = {spread for name in gone for spread in _everywhere(name, layers)}
    tensors = {t.name: t for t in shape.tensors if t.name not in removed}
    for name, tensor in changed.items():
        for spread in _everywhere(name, layers):
            part = tensors[spread].part if spread in tensors else tensor.part
            tensors[spread] = replace(tensor, name=spread, part=part)
    return replace(shape, tensors=tuple(tensors.values()), mixtures=_mixtures(shape, captured, last, layers))


def _everywhere(name: str, layers: Sequence[int]) -> Iterable[str]:
    number = layer_number(name)
    return [name] if number is None else [in_layer(name, n) for n, like in enumerate(layers) if like == number]


# ---------------------------------------------------------------------- tensors
def _tensors(program: Program, history: Sequence[Program], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a program as tensors under the names of the model; packed ones with what they take."""
    kinds = {use.name: use.kind for use in weight_uses(program)}
    plain = {name: weight for step in history for name, weight in _unpacked(step).items()}
    experts = {name.rpartition(".")[0] for name, kind in kinds.items() if kind == "experts"}
    found: dict[str, Tensor] = {}
    for name, own in _by_stem(program, plain).items():
        weight = plain[name]
        part: Part = _PARTS.get(kinds.get(name, ""), "other")
        if part == "other" and name.rpartition(".")[0] in experts:
            part = "routed experts"
        packed = own if name not in program.weights else []
        codes = sum(w.size_bytes for w in packed if not _is_plain(w))
        scales = sum(_numbers(w) for w in packed if _is_plain(w))
        as_known = known.get(name)
        tensor = Tensor(name, weight.shape, part, codes, scales)
        if as_known is not None:
            alike = math.prod(as_known.shape) == math.prod(weight.shape)  # experts may be transposed or interleaved
            tensor = replace(as_known, shape=as_known.shape if alike else weight.shape, codes=codes, scales=scales)
        found.setdefault(tensor.name, tensor)
    return found


def _known(shape: Shape, captured: Program) -> dict[str, Tensor]:
    """The shape's tensors by all names of the program: a table that is tied to the head goes by either's name."""
    known = {t.name: t for t in shape.tensors}
    head = next((t for t in shape.tensors if t.part == "output head" and t.name not in captured.weights), None)
    tied = {use.name for use in weight_uses(captured) if use.kind == "lm_head" and use.name not in known}
    return (dict.fromkeys(tied, head) if head is not None else {}) | known


def _unpacked(program: Program) -> dict[str, Weight]:
    packed = {use.name for use in weight_uses(program) if use.weight is None}
    return {n: w for n, w in program.weights.items() if not any(n.startswith(f"{stem}_") for stem in packed)}


def _by_stem(program: Program, plain: Mapping[str, Weight]) -> dict[str, list[Weight]]:
    """Weights by the name of what they stand for: itself, or what was packed."""
    stems = sorted({use.name for use in weight_uses(program) if use.weight is None}, key=len, reverse=True)
    found: dict[str, list[Weight]] = {}
    for name, weight in program.weights.items():
        stem = next((s for s in stems if name.startswith(f"{s}_") and s in plain), name)
        found.setdefault(stem, []).append(weight)
    return {stem: weights for stem, weights in found.items() if stem in plain}


def _is_plain(weight: Weight) -> bool:
    """Whether a part of a packed weight is kept in the model's own dtype: scales."""
    return weight.dtype.is_floating_point and weight.dtype.itemsize > 1


def _numbers(weight: Weight) -> int:
    return weight.size_bytes // weight.dtype.itemsize


# ---------------------------------------------------------------------- mixtures
def _mixtures(shape: Shape, captured: Program, last: Program, layers: Sequence[int]) -> tuple[Mixture, ...]:
    """The mixtures of the program in every layer of their kind; those that the program does not have stay."""
    before, after = {b.module for b in _blocks(captured)}, _blocks(last)
    gone = {spread for name in before for spread in _everywhere(name, layers)}
    kept = [m for m in shape.mixtures if m.module not in gone]
    made = [replace(b, module=spread) for b in after for spread in _everywhere(b.module, layers)]
    return tuple(sorted([*kept, *made], key=lambda m: (layer_number(m.module) or 0, m.module)))


def _blocks(program: Program) -> list[Mixture]:
    names = {u.node: u.name.rpartition(".")[0] for u in weight_uses(program) if u.kind == "experts"}
    return [_block(names[node], node) for node in moe_nodes(program) if node in names]


def _block(name: str, node: fx.Node) -> Mixture:
    call = MoeCall(node)
    tensors = [t.meta["val"] for t in call.expert_tensors().values() if isinstance(t, fx.Node)]
    parameters = sum(math.prod(int(n) for n in t.shape) for t in tensors)
    w_out = call.w_out.meta["val"].shape
    return Mixture(name, call.experts, call.top_k, parameters, int(w_out[1]), int(w_out[2]))
