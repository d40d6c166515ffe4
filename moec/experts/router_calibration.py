"""Routers of a quantized program fitted to the choices of the untouched one, block after block, each behind those that
are fitted already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.choices import chosen
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.experts.router_fit import Fit, FitData, best_experts, fit_router
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.signature import Sample
from moec.recognition.router_place import RouterPlace


@dataclass(frozen=True)
class FitSettings:
    """How to fit: `top`, `ridge` and `floor` of `calibrate-router`."""

    top: int
    ridge: float
    floor: int

    def best(self, place: RouterPlace) -> int:
        """K, how many of a token's best logits are fitted."""
        return self.top or max(4 * place.top_k, place.experts // 3)


@dataclass
class CalibratedBlock:
    """One mixture-of-experts block whose router is fitted.

    Attributes:
        place, untouched: its router in the quantized and in the untouched program.
        wanted: the untouched logits `[T, E]` for each input. chosen: masks `[T, E]` of the untouched choices for each
            input.
        before, after: those of the quantized program, with the routers that it had and with fitted ones, for each
            held-out input.
        fit: the result.
    """

    place: RouterPlace
    untouched: RouterPlace
    wanted: list[Tensor] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    fit: Fit | None = None

    @property
    def fitted(self) -> Tensor | None:
        """The new router `[E, H]`, None where the old one stays."""
        return self.fit.weight if self.fit else None

    def facts(self) -> dict[str, Any]:
        """What there is to report, as plain data; shares are of the held-out tokens."""
        assert self.fit is not None
        wanted, seen = torch.cat(self.chosen[-len(self.after) :]), sorted(self.fit.tokens)
        (changed, same), (changed_after, same_after) = (
            _shift(wanted, torch.cat(masks)) for masks in (self.before, self.after)
        )
        return {
            "module": module_path(self.place.block) or self.place.block.name,
            "calibrated": self.fitted is not None,
            "rows_fitted": self.fit.rows,
            "rows_left": self.place.experts - self.fit.rows,
            "tokens_least": seen[0],
            "tokens_median": seen[len(seen) // 2],
            "loss_before": self.fit.loss_before,
            "loss_after": self.fit.loss_after,
            "changed_before": changed,
            "changed_after": changed_after,
            "identical_before": same,
            "identical_after": same_after,
        }


def _shift(wanted: Tensor, got: Tensor) -> tuple[float, float]:
    """Of masks `[T, E]`: the share of the choices that went elsewhere, and of the tokens whose set of experts is the
    same."""
    unchanged = (wanted & got).sum(-1) / wanted.sum(-1).clamp(min=1)
    return 1 - float(unchanged.double().mean()), float((wanted == got).all(-1).double().mean())


def calibrate(
    program: Program,
    untouched: Program,
    blocks: Sequence[CalibratedBlock],
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    settings: FitSettings,
) -> None:
    """Fit the routers of all blocks, and fill in the fields of each block; the programs are not changed.

    The untouched program runs once, on all inputs, and the quantized one twice: on the held-out inputs with the
    routers that it has, and on all of them while each router is fitted as its turn comes. Untouched logits lie in
    memory: 4 bytes a token, expert and block.

    Args:
        blocks: in graph order. training: inputs to fit on. held_out: inputs that decide whether a fit is used.
    """
    samples = [*training, *held_out]
    _run(untouched, samples, [(b.untouched, partial(_remember, b), partial(_note, b, "chosen", 0)) for b in blocks])
    _run(program, held_out, [(b.place, None, partial(_note, b, "before", 0)) for b in blocks])
    _run(
        program,
        samples,
        [
            (b.place, partial(_fit, program, b, len(training), settings), partial(_note, b, "after", len(training)))
            for b in blocks
        ],
    )


Do = Callable[[OperatorCalls], None]


def _run(
    program: Program, samples: Sequence[Mapping[str, Tensor]], work: Sequence[tuple[RouterPlace, Do | None, Do]]
) -> None:
    """Run up to the last block, and do what is to be done at each router's product and at each block."""
    todo: dict[fx.Node, list[Do]] = {}
    for place, at_product, at_block in work:
        todo.setdefault(place.product, []).extend([at_product] if at_product else [])
        todo.setdefault(place.block, []).append(at_block)

    def visit(calls: OperatorCalls) -> None:
        for do in todo.pop(calls.node, []):
            do(calls)

    if todo:
        run_in_lockstep(program, samples, visit, until=[n for n in program.graph.nodes if n in todo][-1])


def _remember(block: CalibratedBlock, calls: OperatorCalls) -> None:
    block.wanted = [block.untouched.logits(x) for x in block.untouched.activations(calls)]


def _note(block: CalibratedBlock, what: str, start: int, calls: OperatorCalls) -> None:
    masks = [
        chosen(calls.node, args, named) for args, named in zip(calls.inputs[start:], calls.named[start:], strict=True)
    ]
    setattr(block, what, masks)


def _fit(program: Program, block: CalibratedBlock, fitted: int, settings: FitSettings, calls: OperatorCalls) -> None:
    place, x = block.place, block.place.activations(calls)

    def data(some: slice) -> FitData:
        wanted = torch.cat(block.wanted[some])
        return FitData(
            torch.cat(x[some]), wanted, best_experts(wanted, settings.best(place), torch.cat(block.chosen[some]))
        )

    bias = None if place.bias is None else place.bias.load()
    parts = data(slice(fitted)), data(slice(fitted, None))
    block.fit = fit_router(
        place.weight.load(),
        block.untouched.weight.load(),
        bias,
        *parts,
        settings.ridge,
        settings.floor,
        partial(place.rounded, program),
    )
    if block.fitted is not None:
        place.put(calls, block.fitted)
