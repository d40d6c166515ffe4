"""Dense networks in a graph that become experts: operators first, then, in graph order, the weights, fitted to what a
text brings to each of them."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Routing
from moec.errors import MoecError
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.experts.carved_weights import carved_weights, placeholders
from moec.experts.carving import Carved, Carving, Cut, Dense, NotFiniteError
from moec.experts.residual import residual_sum
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.ffn import Ffn
from moec.recognition.linear import value_of

aten, ops = torch.ops.aten, torch.ops.moec
_TOKENS_AN_EXPERT = 32  # that the text must have, for a router to be fitted to anything
_DRAWN = 64  # rows that stand for a text where nothing is fitted to one


class CarvedPlace:
    """A network that is cut.

    Args:
        program: is changed by `rewrite`. ffn: the network. how: its settings.
        by: what cuts it, for the origins of its weights.
    """

    def __init__(self, program: Program, ffn: Ffn, how: Carving, by: str) -> None:
        self.program, self.ffn, self.how, self._by = program, ffn, how, by
        self.carved: Carved | None = None

    def rewrite(self, name: str, made: dict[fx.Node, fx.Node]) -> None:
        """Put routing and experts in the network's place, with weights that `fit` fills in.

        Args:
            name: of the pass. made: what stands in the place of other networks; this one's is entered.
        """
        x = made.get(self.ffn.x, self.ffn.x)  # a network may read another's output as it is
        program, ffn, call = self.program, self.ffn, partial(call_like, self.program, self.ffn.output, name)
        forms = placeholders(ffn, self.how.experts)
        self.names = {name: program.add_weight(f"{ffn.path}.{name}", w) for name, w in forms.items()}
        rule = Routing(self.how.active, score="identity", combine="ones")
        with program.graph.inserting_before(ffn.output):
            rows = x if value_of(x).dtype == torch.float32 else call(aten.to.dtype, x, torch.float32)
            self.scored = call(aten.linear.default, rows, self._read("router.weight"), self._read("router.bias"))
            chosen = call(ops.route.default, self.scored, None, **rule.arguments())
            parts = call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1)
            w_in, w_out = self._read("experts.w_in"), self._read("experts.w_out")
            b_in = self._read("experts.b_in") if "experts.b_in" in self.names else None
            b_out, constant = self._read("experts.b_out"), self._read("experts.constant")
            y = call(ops.experts.default, x, parts[1], parts[0], w_in, w_out, b_in, b_out, **ffn.activation.arguments())
            y = call(aten.add.Tensor, y, constant)
        ffn.output.replace_all_uses_with(y)
        made[ffn.output] = y

    def _read(self, name: str) -> fx.Node:
        return self.program.read_weight(self.names[name])

    def fit(self, x: Tensor) -> None:
        """Cut the network by what arrives there, `[T, H]`, and put its weights in place. Raises M203 where numbers are
        not finite."""
        self.carved = _cut(self.ffn, x, self.how).at(self.how.active)
        made = carved_weights(self.ffn, self.carved, f"{self._by}, seed {self.how.seed}")
        for name, value in made.items():
            self.program.weights[self.names[name]] = value

    def facts(self, measured: bool) -> dict[str, Any]:
        """What is reported of it, as plain data; errors only where a text was there."""
        assert self.carved is not None
        found = {"module": self.ffn.path, "active": self.how.active}
        return found | (asdict(self.carved.errors) if measured else {})


def carve_in_order(program: Program, places: Sequence[CarvedPlace], batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Fit each place to what the text brings to it when all before it are fitted; by nothing where there is no text,
    since then nothing of it is looked at.

    Raises:
        MoecError: M203 for a text that is too short.
    """
    if not batches:
        for place in places:
            place.fit(torch.randn(_DRAWN, place.ffn.hidden, generator=torch.Generator().manual_seed(place.how.seed)))
        return
    by_router = {place.scored: place for place in places}
    last = next(node for node in reversed(program.graph.nodes) if node in by_router)

    def visit(calls: OperatorCalls) -> None:
        place = by_router.get(calls.node)
        if place is not None:
            x = _joined(calls.values(0))
            _require_tokens(len(x), place)
            with torch.inference_mode(False):
                place.fit(x.clone())
            for at, name in ((1, "router.weight"), (2, "router.bias")):
                calls.replace(at, program.weights[place.names[name]])

    run_in_lockstep(program, batches, visit, until=last)


def _require_tokens(count: int, place: CarvedPlace) -> None:
    least = _TOKENS_AN_EXPERT * place.how.experts
    if count < least:
        what = f"the calibration text has {count} tokens, too few for {place.how.experts} experts"
        fix = f"give one of {least} tokens or more, or ask for fewer experts"
        raise MoecError("M203", what, place.ffn.path, fix)


def error_curves(
    program: Program, ffns: Sequence[Ffn], batches: Sequence[Mapping[str, Tensor]], how: Carving
) -> list[Tensor]:
    """For each dense network its error by the number of experts a token, `[E]`, in units of what it is added to."""
    ends: dict[fx.Node, list[Ffn]] = defaultdict(list)
    for ffn in ffns:
        if (end := residual_sum(ffn.output)) is not None:
            ends[end].append(ffn)
    added = {ffn.output for together in ends.values() for ffn in together}
    entering = {node: ffn for ffn in ffns for node in ffn.nodes if ffn.x in node.all_input_nodes}
    arriving: dict[fx.Node, Tensor] = {}
    found: dict[fx.Node, Tensor] = {}

    def measure(ffn: Ffn, size: float) -> None:
        with torch.inference_mode(False):
            curve = _cut(ffn, arriving[ffn.output].clone(), how).curve()
        found[ffn.output] = curve / max(size, 1e-30)

    def visit(calls: OperatorCalls) -> None:
        ffn = entering.get(calls.node)
        if ffn is not None and ffn.output not in arriving:
            arriving[ffn.output] = x = _joined(calls.values(list(calls.node.args).index(ffn.x))).clone()
            if ffn.output not in added:  # it stands for itself
                dense = _dense(ffn)
                measure(ffn, float((dense.hidden(x) @ dense.w_out.T).square().sum()))
        for each in ends.get(calls.node, ()):
            size = sum(float(v.float().square().sum()) for k in (0, 1) for v in calls.values(k) if torch.is_tensor(v))
            measure(each, size)

    run_in_lockstep(program, batches, visit)
    return [found[ffn.output] for ffn in ffns]


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1, value.shape[-1]) for value in values])


def _cut(ffn: Ffn, x: Tensor, how: Carving) -> Cut:
    try:
        return Cut(_dense(ffn), x, how)
    except NotFiniteError as error:
        fix = "calibrate on another text, or leave carve out for this model"
        raise MoecError("M203", str(error), ffn.path, fix) from error


def _dense(ffn: Ffn) -> Dense:
    b_in = None if ffn.b_in is None else ffn.b_in.load().float()
    return Dense(ffn.w_in.load().float(), b_in, ffn.w_out.load().float(), ffn.activation)
