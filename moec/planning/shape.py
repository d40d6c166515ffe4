"""The shape of a model as far as its cost goes: its matrices by part, its mixtures, what it carries between tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Part = Literal[
    "input embedding",
    "attention",
    "dense FFN",
    "routed experts",
    "shared experts",
    "router",
    "norm",
    "output head",
    "vision and audio",
    "other",
]
PARTS: tuple[Part, ...] = Part.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Tensor:
    """A parameter.

    Attributes:
        name: as transformers names it.
        shape: its dimensions; of routed experts that are stacked the first is E.
        part: what it is for.
        codes: bytes of the integers or small floats that it is packed in, whatever format is asked for; 0 where it is
            not packed.
        scales: how many numbers stand beside them that are stored as what is not packed.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    codes: int = 0
    scales: int = 0

    @property
    def count(self) -> int:
        """How many parameters it holds."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Of the integers that it is packed in, which have a scale for each row at the least; 0 where it is not packed
        in such."""
        return round(8 * self.codes / self.count) if self.codes and self.scales >= self.count // self.shape[-1] else 0


@dataclass(frozen=True)
class Mixture:
    """The routed experts of one layer.

    Attributes:
        module: dotted name of the module that holds them.
        experts, top_k: E and how many of them one token uses.
        parameters: of all E.
        hidden, intermediate: widths H and I of an expert.
    """

    module: str
    experts: int
    top_k: int
    parameters: int
    hidden: int
    intermediate: int

    @property
    def idle(self) -> int:
        """Parameters that one token does not use."""
        return self.parameters - self.parameters * self.top_k // self.experts


@dataclass(frozen=True)
class State:
    """What one layer carries from token to token, for one text.

    Attributes:
        kind: `keys and values`, `compressed keys and values` (multi-head latent attention, DeepSeek-V2) or `recurrent`.
        per_token: elements that each token adds; 0 for a recurrent state.
        fixed: elements that are there whatever the length.
        window: tokens after which the oldest are dropped; 0 for none.
        every: tokens that share a row: compressed attention (DeepSeek-V4) keeps one row of so many.
        wide: elements of `fixed` that are kept in float32, as a config asks for (`mamba_ssm_cache_dtype`).
    """

    kind: str
    per_token: int
    fixed: int = 0
    window: int = 0
    every: int = 1
    wide: int = 0

    def rows(self, context: int) -> int:
        """How many rows that grew with the text it holds after so many tokens."""
        return (min(context, self.window) if self.window else context) // self.every if self.per_token else 0

    def elements(self, context: int) -> int:
        """How many numbers it holds after so many tokens."""
        return self.fixed + self.per_token * self.rows(context)

    def bytes(self, context: int, bits: float = 16) -> int:
        """What they take: those that a token adds in so many bits, those of fixed size in 16, as engines keep them, but
        for those in float32."""
        return 2 * (self.fixed + self.wide) + math.ceil(self.per_token * self.rows(context) * bits / 8)


@dataclass(frozen=True)
class Shape:
    """A model on paper.

    Attributes:
        name: its class.
        tensors: every parameter, shared ones once.
        mixtures: of each layer that has one, in order.
        states: of each layer that carries something; empty for a model that writes no text.
        hidden, layers, vocabulary: H, how many layers, rows of the input embedding.
        heads, head_size: of attention's queries, for the products that grow with the context; 0 where it is not known.
        longest: the context that its positions reach; 0 where the config does not say it.
        multi_token: parameters of the multi-token prediction layers (DeepSeek-V3 §2.2), which are not in `tensors`,
            since transformers does not build them.
        unknown: what could not be counted, in words.
        notes: what the counts rest on, where that is not the model as transformers builds it from the config alone.
    """

    name: str
    tensors: tuple[Tensor, ...]
    mixtures: tuple[Mixture, ...]
    states: tuple[State, ...]
    hidden: int
    layers: int
    vocabulary: int
    heads: int = 0
    head_size: int = 0
    longest: int = 0
    multi_token: int = 0
    unknown: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(t.count for t in self.tensors)

    @property
    def active(self) -> int:
        """Those that one token of text uses, the whole input embedding counted, and what sees and hears not."""
        return self.total - sum(m.idle for m in self.mixtures) - self.parts()["vision and audio"]

    @property
    def active_without_embedding(self) -> int:
        """The same without an input embedding that only looks a row up: a tied one is the output head, and counts."""
        return self.active - self.parts()["input embedding"]

    @property
    def packed(self) -> bool:
        """Whether a pass has packed any of it, so that the name of a format does not say what its matrices are in."""
        return any(t.codes for t in self.tensors)

    def parts(self) -> dict[Part, int]:
        """Parameters by part."""
        return {part: counted(self.tensors, part) for part in PARTS}


def counted(tensors: Iterable[Tensor], part: Part) -> int:
    """Parameters of a part."""
    return sum(t.count for t in tensors if t.part == part)
