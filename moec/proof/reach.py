"""Which experts, and which other matrices, inputs reach in such a way that a comparison would see them spoiled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.signature import Sample
from moec.proof.compare import Tolerance
from moec.proof.influence import Influence
from moec.recognition.hand_written import HandWritten, find_hand_written
from moec.recognition.hand_written_groups import Place
from moec.recognition.matrices import Matrix, find_matrices, hangs_on_inputs


@dataclass(frozen=True)
class Block:
    """A mixture of experts of either kind.

    Attributes:
        node: the operator's name in the graph; of a mixture in plain operators `written by hand`.
        module: the dotted name of what holds the experts.
        experts: the matrices of each. fused: whether it is an operator of the dialect.
    """

    node: str
    module: str
    experts: tuple[tuple[Place, ...], ...]
    fused: bool


BY_HAND = "written by hand"


def hand_written(found: HandWritten) -> Block:
    """A mixture in plain operators as a block."""
    return Block(BY_HAND, found.module, found.experts, False)


class Reach:
    """Keeps what inputs have reached so far.

    Args:
        program: what an engine is built from; its weights are read into memory in each look.
    """

    def __init__(self, program: Program) -> None:
        halves = {w.dtype for w in program.weights.values()} & {torch.float16, torch.bfloat16}
        self._influence = Influence(program, Tolerance.of(min(halves, key=str, default=torch.float32)).deviation)
        matrices = find_matrices(program)
        by_hand = [hand_written(found) for found in find_hand_written(program, matrices)]
        self.blocks = [*_fused(program, matrices), *by_hand]
        self._experts = {p: None for block in self.blocks for expert in block.experts for p in expert}
        # a product that no input changes is a constant of the model: whatever it hides, no input will show
        live = hangs_on_inputs(program)
        moved = [m for m in matrices if any(live.intersection(p.all_input_nodes) for p in m.products)]
        places = [Place(m, k if m.parts else None) for m in moved for k in range(len(m.names))]
        self._others = {place: None for place in places if place not in self._experts}
        self._faint: dict[Place, list[Sample]] = {}  # inputs that reach an expert, perhaps too weakly

    @property
    def searches(self) -> bool:
        """Whether experts of a mixture in plain operators are still to be reached."""
        return any(p in self._experts for b in self.blocks if not b.fused for expert in b.experts for p in expert)

    def look(self, sample: Sample) -> bool:
        """Look at what an input reaches; whether it is an expert of a mixture in plain operators that none did."""
        open_places = [*self._experts, *self._others]
        if not open_places:
            return False
        before, effects = self._by_hand(), self._influence.effects(sample, _matrices(open_places))
        for place, effect in effects.items():
            if effect > 0:  # not NaN, which says that there is no derivative
                self._others.pop(place, None)
                self._faint.setdefault(place, []).append(sample)
            if effect >= 1:
                self._experts.pop(place, None)
        return self._by_hand() < before

    def settle(self, samples: Sequence[Sample]) -> None:
        """Negate what is still open, one matrix at a time, on these inputs, and take off what a comparison sees."""
        self._settle_others(samples)
        for place in list(self._experts):
            reaching = self._faint.get(place, ())
            if any(self._influence.seen(s, place) for s in reaching) or self._stands_behind_zeros(place):
                del self._experts[place]

    def _settle_others(self, samples: Sequence[Sample]) -> None:
        for sample in samples if self._others else ():  # what stands behind a matrix of zeros has no effect of its own
            for place, effect in self._influence.effects(sample, _matrices(self._others), filled=True).items():
                if effect > 0:
                    self._others.pop(place, None)
        for place in list(self._others):  # a router whose scores only choose has no derivative
            if any(self._influence.seen(sample, place) for sample in samples):
                del self._others[place]

    def missed(self, block: Block) -> tuple[int, ...]:
        """The experts of a block some matrix of which no input reached so that it could be seen."""
        return tuple(e for e, places in enumerate(block.experts) if any(p in self._experts for p in places))

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the other matrices that no input reached."""
        return tuple(dict.fromkeys(place.name for place in self._others))

    def _by_hand(self) -> int:
        return sum(len(self.missed(block)) for block in self.blocks if not block.fused)

    def _stands_behind_zeros(self, place: Place) -> bool:
        expert = next(e for block in self.blocks for e in block.experts if place in e)
        return any(self._influence.is_zero(other) for other in expert if other != place)


def _fused(program: Program, matrices: Sequence[Matrix]) -> list[Block]:
    blocks = []
    for node in moe_nodes(program):
        own = [m for m in matrices if node in m.products and m.parts]
        experts = tuple(tuple(Place(m, e) for m in own) for e in range(max((len(m.parts) for m in own), default=0)))
        blocks.append(Block(node.name, module_path(node), experts, True))
    return blocks


def _matrices(places: Iterable[Place]) -> Collection[Matrix]:
    return list(dict.fromkeys(place.matrix for place in places))
