"""`carve`: a dense model's feed-forward networks become mixtures whose tokens use a part of the neurons, without
training."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from moec.dialect import Routing
from moec.errors import MoecError
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.experts.carved_router import ROUTERS
from moec.experts.carved_weights import carved_weights, placeholders
from moec.experts.carving import Carved, Carving, Cut, Dense, allocate
from moec.experts.neuron_groups import PARTITIONS
from moec.pipeline.passes import Context, Contract, Pass, Plan, Weights
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.ffn import Ffn, find_ffns
from moec.recognition.linear import value_of

aten, ops = torch.ops.aten, torch.ops.moec
_TOKENS_AN_EXPERT = 32  # that the text must have, for a router to be fitted to anything


@dataclass(frozen=True)
class Carve(Pass):
    """Cut dense feed-forward networks into equal experts, of which a token uses `active`; it computes less, and says
    something else where what is left out mattered.

    Layers are cut in graph order, each on what the layers before it, already cut, bring to it. Experts are clusters of
    neurons with alike rows; a router is fitted in closed form to how much each expert would add (see
    `moec.experts.carving`). The report holds, for each layer, what is lost, beside what static pruning to as many
    neurons loses (FLAP, arXiv 2312.11983) and what a router that knows the outcome would.

    Attributes:
        experts: E, parts of each network.
        shared: how many of them every token uses: those of the neurons that are worth most.
        active: experts a token, shared ones among them; or a share below 1 of all, which is spread over the layers
            where it costs least. All of them is exact.
        partition: `rows` (clusters of the first matrix's rows), `coactivation` or `random`.
        router: `ridge`, `mean-row` (MoEfication, arXiv 2110.01786) or `random`.
        compensate: add what experts give on average to tokens that do not choose them.
        seed: for clusters and what is random, beside the pipeline's own.
    """

    contract: ClassVar[Contract] = "approximate"
    needs_weights: ClassVar[Weights] = "unquantized"

    experts: int = 16
    shared: int = 0
    active: int | float = 0.5
    partition: str = "rows"
    router: str = "ridge"
    compensate: bool = True
    seed: int = 0

    def contract_of(self) -> Contract:
        return "exact" if self.active == self.experts else "approximate"

    def needs_calibration(self) -> bool:
        return self.partition != "random" or self.router != "random" or self.compensate

    def without_data(self) -> Pass:
        """The same shapes, cut at random, every layer alike."""
        known = self.partition in PARTITIONS and self.router in ROUTERS
        active = max(self.shared + 1, round(self.active * self.experts)) if self._is_share() else self.active
        return replace(self, partition="random", router="random", compensate=False, active=active) if known else self

    def plan(self, program: Program, context: Context) -> Plan:
        """With a share the text decides which layers are cut at all."""
        found = super().plan(program, context)
        return replace(found, least=0) if self._is_share() and found.most else found

    def milder(self) -> tuple[Pass, ...]:
        share = self.active if self._is_share() else self.active / self.experts
        steps = [s for s in (0.75, 0.875) if s > share]
        return tuple(replace(self, active=s if self._is_share() else round(s * self.experts)) for s in steps)

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of networks that were cut. Raises M203 on settings that fit no network, and for a text
        that is too short."""
        self._check()
        ffns, misses = find_ffns(program)
        for miss in misses:
            context.miss(miss.node, miss.reason)
        ffns = [ffn for ffn in ffns if self._is_alone(ffn, ffns, context)]
        batches = list(context.require_calibration().batches(program.inputs)) if self.needs_calibration() else []
        seed = context.seed + self.seed
        counts = self._counts(program, ffns, batches, seed)
        todo = [_Place(self, program, ffn, n, seed) for ffn, n in zip(ffns, counts, strict=True) if n < self.experts]
        if self.active == self.experts:
            todo = [_Place(self, program, ffn, self.experts, seed) for ffn in ffns]
        for place in todo:
            place.rewrite()
        if todo and batches:
            _fit(program, batches, {place.scored: place.fit for place in todo})
        elif todo:
            for place in todo:
                place.fit([torch.randn(64, place.ffn.hidden, generator=torch.Generator().manual_seed(seed))])
        context.facts["layers"] = [place.facts() for place in todo]
        return len(todo)

    # ------------------------------------------------------------------ configuration
    def _is_share(self) -> bool:
        return isinstance(self.active, float)

    def _refuse(self, what: str, fix: str, where: str = "") -> MoecError:
        return MoecError("M203", what, where or str(self), fix)

    def _check(self) -> None:
        counts = (self.experts, self.shared)
        if any(type(n) is not int for n in counts) or self.experts < 2 or not 0 <= self.shared < self.experts:
            raise self._refuse("experts and shared count parts", "write for example carve(experts=16, shared=2)")
        if self._is_share() and not 0 < self.active < 1:
            raise self._refuse(f"active={self.active} is no share", "write active=0.5, or a number of experts")
        if not self._is_share() and (
            type(self.active) is not int or not max(1, self.shared) <= self.active <= self.experts
        ):
            what = f"active={self.active} of {self.experts} experts, {self.shared} of them shared, is not possible"
            raise self._refuse(what, f"set active between {max(1, self.shared)} and {self.experts}")
        for value, known, word in ((self.partition, PARTITIONS, "partition"), (self.router, ROUTERS, "router")):
            if value not in known:
                raise self._refuse(f"there is no {word} {value!r}", f"there are {', '.join(known)}")

    def _is_alone(self, ffn: Ffn, ffns: Sequence[Ffn], context: Context) -> bool:
        """Whether a network can be cut by itself; raises M203 for a width that does not divide."""
        if sum((f.w_in.origin, f.w_out.origin) == (ffn.w_in.origin, ffn.w_out.origin) for f in ffns) > 1:
            context.miss(ffn.output, "its weights are used in several places")
            return False
        if ffn.intermediate % self.experts:
            near = [n for n in range(2, ffn.intermediate + 1) if ffn.intermediate % n == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.experts))[:2])
            what = f"{self.experts} experts do not divide the {ffn.intermediate} neurons of {ffn.path}"
            raise self._refuse(what, f"use {' or '.join(f'experts={n}' for n in near)}")
        return True

    def carving(self, active: int, seed: int) -> Carving:
        """One network's settings."""
        return Carving(self.experts, self.shared, active, self.partition, self.router, self.compensate, seed)

    # ------------------------------------------------------------------ the budget
    def _counts(self, program: Program, ffns: list[Ffn], batches: list[dict[str, Tensor]], seed: int) -> list[int]:
        if isinstance(self.active, int) or not ffns:
            return [int(self.active)] * len(ffns)
        curves: dict[str, Tensor] = {}

        def measure(ffn: Ffn, x: Tensor, residual: float) -> None:
            curves[ffn.output.name] = Cut(_dense(ffn), x, self.carving(self.experts, seed)).curve() / residual

        _look(program, batches, ffns, measure)
        return allocate([curves[f.output.name] for f in ffns], max(1, self.shared), self.active)


class _Place:
    """A network in the graph that is cut: operators first, their weights when it is known what arrives there."""

    def __init__(self, item: Carve, program: Program, ffn: Ffn, active: int, seed: int) -> None:
        self.item, self.program, self.ffn, self.active, self.seed = item, program, ffn, active, seed
        self.carved: Carved | None = None

    def rewrite(self) -> None:
        """Put routing and experts in the network's place, with weights that `fit` fills in."""
        program, ffn, call = self.program, self.ffn, partial(call_like, self.program, self.ffn.output, self.item.name)
        forms = placeholders(ffn, self.item.experts)
        self.names = {name: program.add_weight(f"{ffn.path}.{name}", w) for name, w in forms.items()}
        rule = Routing(self.active, score="identity", combine="ones")
        with program.graph.inserting_before(ffn.output):
            rows = ffn.x if value_of(ffn.x).dtype == torch.float32 else call(aten.to.dtype, ffn.x, torch.float32)
            self.scored = call(aten.linear.default, rows, self._read("router.weight"), self._read("router.bias"))
            chosen = call(ops.route.default, self.scored, None, **rule.arguments())
            parts = call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1)
            w_in, w_out = self._read("experts.w_in"), self._read("experts.w_out")
            b_in = self._read("experts.b_in") if "experts.b_in" in self.names else None
            b_out, constant = self._read("experts.b_out"), self._read("experts.constant")
            y = call(
                ops.experts.default, ffn.x, parts[1], parts[0], w_in, w_out, b_in, b_out, **ffn.activation.arguments()
            )
            y = call(aten.add.Tensor, y, constant)
        ffn.output.replace_all_uses_with(y)

    def _read(self, name: str) -> fx.Node:
        return self.program.read_weight(self.names[name])

    def fit(self, arriving: list[Tensor]) -> None:
        """Cut the network by what arrives there, and put its weights in place."""
        x = torch.cat([value.reshape(-1, value.shape[-1]) for value in arriving])
        if self.item.needs_calibration() and len(x) < _TOKENS_AN_EXPERT * self.item.experts:
            what = f"the calibration text has {len(x)} tokens, too few for {self.item.experts} experts"
            least = _TOKENS_AN_EXPERT * self.item.experts
            raise MoecError(
                "M203", what, self.ffn.path, f"give one of {least} tokens or more, or ask for fewer experts"
            )
        self.carved = Cut(_dense(self.ffn), x, self.item.carving(self.active, self.seed)).at(self.active)
        made = carved_weights(self.ffn, self.carved, f"{self.item}, seed {self.seed}")
        for name, value in made.items():
            self.program.weights[self.names[name]] = value

    def facts(self) -> dict[str, Any]:
        """What is reported of it, as plain data."""
        assert self.carved is not None
        return {"module": self.ffn.path, "active": self.active, **asdict(self.carved.errors)}


def _dense(ffn: Ffn) -> Dense:
    b_in = None if ffn.b_in is None else ffn.b_in.load().float()
    return Dense(ffn.w_in.load().float(), b_in, ffn.w_out.load().float(), ffn.activation)


def _fit(program: Program, batches: list[dict[str, Tensor]], fits: dict[fx.Node, Any]) -> None:
    """Run the text through the program, and fit each place when its router is reached."""
    last = next(node for node in reversed(program.graph.nodes) if node in fits)

    def visit(calls: OperatorCalls) -> None:
        if calls.node in fits:
            with torch.inference_mode(False):
                fits[calls.node]([value.clone() for value in calls.values(0)])
            router, bias = (program.weights[str(n.target)] for n in calls.node.args[1:])  # type: ignore[union-attr]
            calls.replace(1, router)
            calls.replace(2, bias)

    run_in_lockstep(program, batches, visit, until=last)


def _look(program: Program, batches: list[dict[str, Tensor]], ffns: list[Ffn], measure: Any) -> None:
    """Run the text through the dense program; `measure` is given each network, what arrives there, and how large what
    it is added to is (its own output, where it is added to nothing)."""
    ends = {_added(ffn): ffn for ffn in ffns}
    arriving: dict[fx.Node, Tensor] = {}
    entering = {node: ffn for ffn in ffns for node in ffn.nodes if ffn.x in node.all_input_nodes}

    def visit(calls: OperatorCalls) -> None:
        ffn = entering.get(calls.node)
        if ffn is not None and ffn.output not in arriving:
            place = list(calls.node.args).index(ffn.x)
            arriving[ffn.output] = torch.cat([v.reshape(-1, v.shape[-1]).clone() for v in calls.values(place)])
        end = ends.get(calls.node)
        if end is not None:
            size = sum(float(v.float().square().sum()) for k in (0, 1) for v in calls.values(k) if torch.is_tensor(v))
            with torch.inference_mode(False):
                measure(end, arriving.pop(end.output).clone(), size)

    run_in_lockstep(program, batches, visit)


def _added(ffn: Ffn) -> fx.Node:
    """The addition to the residual stream; the network's own last operator where there is none."""
    users = [n for n in ffn.output.users if n.target == aten.add.Tensor]
    return users[0] if users else ffn.output
