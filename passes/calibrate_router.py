"""`calibrate-router`: routers are fitted anew to a model whose weights became coarser, so that tokens go to the experts
that they went to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from moec.errors import MoecError
from moec.experts.router_calibration import CalibratedBlock, FitSettings, calibrate
from moec.pipeline.passes import Context, Contract, Pass, Plan, Weights
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.recognition.linear import find_linears
from moec.recognition.router_place import find_router
from moec.recognition.router_region import NotARouter

_HELD_OUT = 10  # one window in ten is held out, and judges the fit on the others
_USUAL = {
    "top": "a number of logits, or 0 to choose by the model",
    "ridge": "a number above 0, 0.01 is usual",
    "floor": "a number of tokens, 500 is usual",
}


@dataclass(frozen=True)
class CalibrateRouter(Pass):
    """Fit routers anew after `quantize`, so that tokens find their experts again.

    This is EAC-MoE's expert-selection calibration (arXiv 2508.01625), in the closed form of `moec.experts.router_fit`.
    Rounded weights move what routers read, and a token that lands at other experts is computed by weights that were
    trained for other tokens. In graph order, each router is fitted to give the untouched model's logits on what the
    quantized model hands it, with all routers before it fitted already. Every tenth window of the calibration text is
    held back: a router whose error does not fall there stays as it is. Correction biases and biases of logits stay in
    any case.

    Attributes:
        top: K, how many of a token's best logits are fitted; 0 for four times the experts a token or a third of all,
            whichever is more.
        ridge: how strongly a row is drawn to what it was, in units of the mean squared activation.
        floor: rows that count for fewer calibration tokens stay as they are.
    """

    contract: ClassVar[Contract] = "approximate"
    needs_weights: ClassVar[Weights] = "quantized"

    top: int = 0
    ridge: float = 0.01
    floor: int = 500

    def needs_calibration(self) -> bool:
        return True

    def plan(self, program: Program, context: Context) -> Plan:
        """Which routers can be worked on; the text decides which of them change."""
        self.check_settings()
        own = context.given_to(self)
        blocks = self._blocks(program, self._untouched(program, own), own)
        return Plan(str(self), 0, len(blocks), program.clone(), tuple(own.misses))

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of routers that were changed. Raises M203 on settings that are invalid or fit no block,
        without a calibration text of two windows, and when no pass before this one made weights coarser."""
        self.check_settings()
        training, held_out = context.require_calibration().divided(program.inputs, _HELD_OUT, str(self))
        untouched = self._untouched(program, context)
        blocks = self._blocks(program, untouched, context)
        calibrate(program, untouched, blocks, training, held_out, FitSettings(self.top, self.ridge, self.floor))
        context.facts["blocks"] = [b.facts() for b in blocks]
        return sum(self._settle(program, context, b) for b in blocks)

    # ------------------------------------------------------------------ what is given
    def check_settings(self) -> None:
        positive = (
            isinstance(self.ridge, int | float) and not isinstance(self.ridge, bool) and 0 < self.ridge < math.inf
        )
        for name, possible in (
            ("top", type(self.top) is int and self.top >= 0),
            ("ridge", positive),
            ("floor", type(self.floor) is int and self.floor >= 1),
        ):
            if not possible:
                raise MoecError("M203", f"{name}={getattr(self, name)!r} is not possible", str(self), _USUAL[name])

    def _untouched(self, program: Program, context: Context) -> Program:
        assert context.unquantized is not None  # `needs_weights`
        now, then = len(moe_nodes(program)), len(moe_nodes(context.unquantized))
        if now != then:
            what = f"the model has {now} mixture-of-experts blocks, and had {then} before it was quantized"
            raise MoecError("M203", what, str(self), "put passes that make or remove blocks before quantize")
        return context.unquantized

    # ------------------------------------------------------------------ blocks
    def _blocks(self, program: Program, untouched: Program, context: Context) -> list[CalibratedBlock]:
        """The blocks whose routers can be fitted; `context.miss` says why others cannot."""
        linears, before, found = find_linears(program), find_linears(untouched), []
        for node, node_before in zip(moe_nodes(program), moe_nodes(untouched), strict=True):
            try:
                block = CalibratedBlock(
                    find_router(program, node, linears), find_router(untouched, node_before, before)
                )
                if block.place.weight.shape != block.untouched.weight.shape:
                    raise NotARouter(
                        f"it chooses among {block.place.experts} experts, "
                        f"and chose among {block.untouched.experts} before"
                    )
            except NotARouter as reason:
                context.miss(node, f"its router stays as it is: {reason}")
                continue
            if self.top and not block.place.top_k <= self.top <= block.place.experts:
                what = (
                    f"top={self.top} does not fit a block that chooses {block.place.top_k} of {block.place.experts} "
                    "experts"
                )
                raise MoecError(
                    "M203", what, module_path(node) or node.name, "leave top out, or take a number between the two"
                )
            found.append(block)
        return found

    def _settle(self, program: Program, context: Context, block: CalibratedBlock) -> int:
        """Write a block's new router into the program, or say why it stays; returns how many were written."""
        assert block.fit is not None
        if block.fitted is None:
            context.miss(block.place.block, f"its router stays as it is: {block.fit.reason}")
            return 0
        text = context.require_calibration()
        block.place.write(
            program, block.fitted, f"calibrated[{self}, {text.sha256[:16]} {text.text.tokens} {text.seed}]"
        )
        return 1
