"""`add-expert`: a mixture that was merged before gets another fine-tune's networks, and nothing of it is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moec.errors import MoecError
from moec.experts.added_place import AddedPlace, Beside, add_in_order, why_not
from moec.experts.cut import MoeBlock, find_block, together
from moec.experts.merged_sources import divided_text, name_of, open_alike
from moec.pipeline.calibration import Calibration
from moec.pipeline.passes import Context, Contract, Pass, Plan, Weights
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.recognition.ffn import Ffn, find_ffns
from moec.recognition.linear import find_linears
from moec.recognition.router_region import NotARouter


@dataclass(frozen=True)
class AddExpert(Pass):
    """Add a fine-tune to a mixture, as a last expert of each layer.

    The expert is its feed-forward networks. The mixture is of `merge`, or any that chooses by softmax of a linear
    router. Experts, rows of routers and all else that the mixture has stay as they are, bit for bit. What is new is the
    expert and its row, in closed form (`moec.experts.added_row`): a token goes there where the row says more than all
    others, so that the calibration names a text for the new model, called like its folder, and at least one of what the
    mixture is for: `--calibration "med=c.txt,code=a.txt,law=b.txt"`. Layers are fitted in graph order, each to what the
    layers before it, which have the new expert already, bring there. Attention, norms and embeddings are the mixture's.

    Attributes:
        source: a folder, or a hub id in the local cache, of a fine-tune of what the mixture was made of; a LoRA adapter
            too.
        ridge: how strongly rows are drawn to none, in units of the mean squared activation.
        refit: fit the new expert's last matrix to the residual stream of its own model for its own text, and to the old
            mixture's for other tokens that it gets; with one expert a token.
    """

    contract: ClassVar[Contract] = "new model"
    needs_weights: ClassVar[Weights] = "unquantized"
    prepared_by: ClassVar[tuple[str, ...]] = ("find-moe",)

    source: str = ""
    ridge: float = 1e-3
    refit: bool = True

    def needs_calibration(self) -> bool:
        return True

    def other_models(self) -> tuple[str, ...]:
        return (self.source,)

    def plan(self, program: Program, context: Context) -> Plan:
        """The form of the mixture; no model is opened."""
        self.check_settings()
        copy = program.clone()
        blocks = self._blocks(copy)
        for block in blocks:
            AddedPlace.like_its_own(copy, block).rewrite(self.name)
        copy.check()
        copy.finish()
        return Plan(str(self), len(blocks), len(blocks), copy)

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of mixtures that got an expert. Raises M203 on settings, models and texts that do not fit
        each other, and what opening the model raises."""
        self.check_settings()
        texts = self._texts(context.require_calibration())
        blocks = self._blocks(program)
        if not blocks:
            return 0
        widest = max(block.projection.weight.shape[1] for block in blocks if block.projection is not None)
        parts = [divided_text(text, program, widest, str(self)) for text in texts.values()]
        model = open_alike(program, self.source, str(self))
        ffns = self._matched(blocks, find_ffns(model)[0])
        untouched = program.clone() if self.refit else None
        places = [AddedPlace(program, block, ffn) for block, ffn in zip(blocks, ffns, strict=True)]
        for place in places:
            place.rewrite(self.name)
        program.finish()
        beside = None if untouched is None else Beside(model, untouched, parts)
        add_in_order(program, places, parts, beside, self.ridge)
        context.facts["expert"] = {"name": name_of(self.source), "number": blocks[0].experts}
        context.facts["layers"] = [place.facts() for place in places]
        return len(places)

    # ------------------------------------------------------------------ configuration
    def _refuse(self, what: str, fix: str, where: str = "") -> MoecError:
        return MoecError("M203", what, where or str(self), fix)

    def check_settings(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise self._refuse("no model is named whose networks become experts", "write add-expert('med/')")
        if not 0 < self.ridge < math.inf:
            raise self._refuse(f"ridge={self.ridge} is not possible", "a number above 0; 0.001 is usual")

    def check_calibration(self, calibration: Calibration) -> None:
        self._texts(calibration)

    def _texts(self, calibration: Calibration) -> dict[str, Calibration]:
        """The new model's text, and then the others. Raises M203 where one of both is missing."""
        name, given = name_of(self.source), calibration.parts
        others = [other for other in given if other != name]
        if name not in given or not others:
            what = f"names no text of {name}" if name not in given else "names no text of what the mixture is for"
            example = ",".join(f"{each}=FILE" for each in (name, *(others or ["others"])))
            raise self._refuse(f"the calibration {what}", f'write --calibration "{example}"', "--calibration")
        return {each: given[each] for each in (name, *others)}

    # ------------------------------------------------------------------ what fits what
    def _blocks(self, program: Program) -> list[MoeBlock]:
        linears, found = find_linears(program), list[MoeBlock]()
        fix = "merge again with all sources, from the base"
        for node in moe_nodes(program):
            where = module_path(node) or node.name
            try:
                found.append(find_block(node, linears))
            except NotARouter as reason:
                raise self._refuse(f"it cannot get an expert: {reason}", fix, where) from None
            if why := why_not(found[-1]):
                raise self._refuse(f"it cannot get an expert: {why}", fix, where)
        shared = next((group[1] for group in together(found) if len(group) > 1), None)
        if shared is not None:
            raise self._refuse("its experts or its router are another layer's too", fix, shared.module)
        return found

    def _matched(self, blocks: Sequence[MoeBlock], ffns: Sequence[Ffn]) -> list[Ffn]:
        """The network of each block, in graph order."""
        fix = "give a fine-tune of the model that the mixture was made of"
        if len(ffns) != len(blocks):
            what = f"it has {len(ffns)} feed-forward networks, and the mixture {len(blocks)} layers of experts"
            raise self._refuse(what, fix, self.source)
        for block, ffn in zip(blocks, ffns, strict=True):
            if why := why_not(block, ffn):
                raise self._refuse(f"{ffn.path} cannot be an expert of {block.module}: {why}", fix, self.source)
        return list(ffns)
