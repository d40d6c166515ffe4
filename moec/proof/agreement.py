"""What a compilation did to the inside of a model, on given inputs: the experts that are chosen, and the error that
each layer adds to.

An engine shows its outputs only, so this compares programs: the captured one and the one that the engine was built
from, in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.choices import chosen
from moec.execution.trace import cached_values, trace
from moec.program.decoder_signature import IDS
from moec.program.moe_call import EXPERTS, MOE, moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path, module_paths
from moec.program.signature import Sample


@dataclass(frozen=True)
class BlockAgreement:
    """The choices of one mixture-of-experts block, made by the untouched model and after the passes.

    Attributes:
        module: dotted name.
        shared: of the experts that the untouched model gives a token to, the share that it is still given to; mean over
            tokens.
        identical: share of the tokens whose set of experts is the same.
        load, load_after: tokens of each expert, before and after.
    """

    module: str
    shared: float
    identical: float
    load: tuple[int, ...]
    load_after: tuple[int, ...]


@dataclass(frozen=True)
class LayerError:
    """`‖difference‖ / ‖untouched‖` of what leaves a layer, with everything that the layers before it added."""

    module: str
    relative: float


@dataclass(frozen=True)
class Agreement:
    """Both for all blocks and layers that exist on either side, in graph order. `tokens`: how many were looked at."""

    tokens: int
    blocks: tuple[BlockAgreement, ...]
    layers: tuple[LayerError, ...]


@dataclass
class _ChoiceSums:
    """Sums over the inputs seen so far."""

    load: Tensor
    load_after: Tensor
    tokens: int = 0
    shared: float = 0.0
    identical: int = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Masks `[T, E]` of the experts that tokens are given to."""
        self.load, self.load_after = self.load + before.sum(0), self.load_after + after.sum(0)
        self.tokens += len(before)
        self.shared += float(((before & after).sum(-1) / before.sum(-1).clamp(min=1)).double().sum())
        self.identical += int((before == after).all(-1).sum())


@dataclass
class _Inside:
    """What one run showed: masks `[T, E]` of the chosen experts by block, and what leaves each layer."""

    chosen: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, Tensor] = field(default_factory=dict)


def look_inside(captured: Program, program: Program, samples: Sequence[Sample]) -> Agreement | None:
    """The same on a few inputs of a proof, for a page; None without any. What its figures are it says for itself: no
    verdict hangs on them."""
    found = measure_agreement(captured, program, samples) if samples else None
    return found if found and (found.layers or found.blocks) else None


def measure_agreement(captured: Program, program: Program, samples: Iterable[Sample]) -> Agreement:
    """Run both programs on the same inputs and compare their insides.

    A block is left out when the passes made it, or changed how many experts it has: there is nothing to agree with.
    Weights are read one at a time, and one input's values are held.
    """
    blocks: dict[str, _ChoiceSums] = {}
    squares: dict[str, tuple[float, float]] = {}
    tokens = 0
    for sample in samples:
        before, after = _look(captured, sample), _look(program, sample)
        for name, mask in before.chosen.items():
            other = after.chosen.get(name)
            if other is not None and other.shape == mask.shape:
                blocks.setdefault(name, _ChoiceSums(*torch.zeros(2, mask.shape[1], dtype=torch.int64))).add(mask, other)
        for name, value in before.layers.items():
            other = after.layers.get(name)
            if other is not None and other.shape == value.shape:
                error, norm = squares.get(name, (0.0, 0.0))
                squares[name] = (
                    error + float((other.double() - value.double()).square().sum()),
                    norm + float(value.double().square().sum()),
                )
        tokens += sample[IDS].numel() if IDS in sample else 0  # of a model of something else nobody counts them
    return Agreement(
        tokens,
        tuple(
            BlockAgreement(name, b.shared / b.tokens, b.identical / b.tokens, _counts(b.load), _counts(b.load_after))
            for name, b in blocks.items()
            if b.tokens
        ),
        tuple(LayerError(name, (error / norm) ** 0.5 if norm else 0.0) for name, (error, norm) in squares.items()),
    )


def _counts(load: Tensor) -> tuple[int, ...]:
    return tuple(int(n) for n in load)


def _look(program: Program, sample: Sample) -> _Inside:
    """Run a program; a block whose name is not unique is known by its number."""
    found, names, last = _Inside(), _block_names(program), _layer_outputs(program)

    def watch(node: fx.Node, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if node.target in (EXPERTS, MOE):
            found.chosen[names[node.name]] = chosen(node, args, kwargs)
        if node.name in last:
            found.layers[last[node.name]] = value

    trace(program, sample, watch)
    return found


def _block_names(program: Program) -> dict[str, str]:
    """Node name -> the module's path where only one block has it, else the block's number."""
    paths = {n.name: module_path(n) for n in moe_nodes(program)}
    alone = {p for p in paths.values() if p and list(paths.values()).count(p) == 1}
    return {name: path if path in alone else f"block {k}" for k, (name, path) in enumerate(paths.items())}


def _layer_outputs(program: Program) -> dict[str, str]:
    """Node name -> path of the layer that it is the last value of. A layer is the outermost module whose name is a
    number."""
    cached = cached_values(program)
    last: dict[str, str] = {}
    for node in program.graph.nodes:
        layer = _layer(node)
        example = node.meta.get("val")
        real = isinstance(example, Tensor) and example.is_floating_point()
        if layer and real and node.name not in cached and any(_layer(user) != layer for user in node.users):
            last[layer] = node.name
    return {name: layer for layer, name in last.items()}


def _layer(node: fx.Node) -> str:
    return next((p for p in module_paths(node) if p.rpartition(".")[2].isdigit()), "")
