"""Dense networks in a graph that become experts: operators first, then, in graph order, the weights, fitted to what a
text brings to each of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from moec.dialect import Activation, Routing
from moec.errors import MoecError
from moec.execution.lockstep import OperatorCalls, joined, run_in_lockstep
from moec.experts.carved_weights import carved_weights, placeholders
from moec.experts.carving import Carving, Errors, NotFiniteError, cut
from moec.experts.dense_network import dense_of, in_float32
from moec.experts.network_text import NetworkText, stride
from moec.experts.stream import Stream, UntouchedStream, stream_of, without_network
from moec.experts.stream_step import Step
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.ffn import Ffn
from moec.recognition.linear import value_of

aten, ops = torch.ops.aten, torch.ops.moec
TOKENS_AN_EXPERT = 32  # that the text must have, for a router to be fitted to anything
_DRAWN = 64  # rows that stand for a text where nothing is fitted to one
_PLAIN = {  # activations that a router of CMoE's kind is written with
    "silu": (aten.silu.default, {}),
    "gelu": (aten.gelu.default, {}),
    "gelu_tanh": (aten.gelu.default, {"approximate": "tanh"}),
    "relu": (aten.relu.default, {}),
}


class CarvedPlace:
    """A network that is cut.

    Args:
        program: is changed by `rewrite`. ffn: the network. how: its settings.
        by: what cuts it, for the origins of its weights.
    """

    def __init__(self, program: Program, ffn: Ffn, how: Carving, by: str) -> None:
        self.program, self.ffn, self.how, self._by = program, ffn, how, by
        self.found: tuple[int, Errors, Step | None] | None = None  # shared experts, what is lost, how far it went
        self._untouched: UntouchedStream | None = None
        self._stream: Stream | str = ""

    @property
    def end(self) -> fx.Node:
        """The node that is replaced."""
        return self.ffn.output

    def rewrite(self, name: str, made: dict[fx.Node, fx.Node]) -> None:
        """Put routing and experts in the network's place, with weights that `fit` fills in.

        Args:
            name: of the pass. made: what stands in the place of other networks; this one's is entered.
        """
        x = made.get(self.ffn.x, self.ffn.x)  # a network may read another's output as it is
        program, ffn, call = self.program, self.ffn, partial(call_like, self.program, self.ffn.output, name)
        forms = placeholders(ffn, self.how)
        self.names = {name: program.add_weight(f"{ffn.path}.{name}", w) for name, w in forms.items()}
        rule = Routing(self.how.active, score="identity", combine="ones")
        with program.graph.inserting_before(ffn.output):
            rows = x if value_of(x).dtype == torch.float32 else call(aten.to.dtype, x, torch.float32)
            chosen = call(ops.route.default, self._logits(rows, call), None, **rule.arguments())
            parts = call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1)
            w_in, w_out = self._read("experts.w_in"), self._read("experts.w_out")
            b_in = self._read("experts.b_in") if "experts.b_in" in self.names else None
            b_out, constant = self._read("experts.b_out"), self._read("experts.constant")
            y = call(ops.experts.default, x, parts[1], parts[0], w_in, w_out, b_in, b_out, **ffn.activation.arguments())
            y = call(aten.add.Tensor, y, constant)
        ffn.output.replace_all_uses_with(y)
        made[ffn.output] = y
        self.made = y

    def bring_back(self, untouched: UntouchedStream) -> None:
        """Fit the network to the untouched program's residual stream, where it can be told, in place of its own old
        output. Called in graph order, when all places are rewritten."""
        if self.how.refit and self.how.active < self.how.experts:
            self._untouched, self._stream = untouched, untouched.follow(stream_of(self.made, self.first))

    def _logits(self, rows: fx.Node, call: Callable[..., fx.Node]) -> fx.Node:
        """The router: a linear layer, or a small network of the neurons that stand for their experts."""
        weight = self._read("router.weight")
        if self.how.router != "analytical":
            self.first = call(aten.linear.default, rows, weight, self._read("router.bias"))
            return self.first
        function, options = _PLAIN[self.ffn.activation.name]
        self.first = call(aten.linear.default, rows, weight)
        value = call(function, self.first, **options)
        if self.ffn.activation.gated:
            value = call(aten.mul.Tensor, value, call(aten.linear.default, rows, self._read("router.up")))
        return call(aten.add.Tensor, call(aten.abs.default, value), self._read("router.bias"))

    def _read(self, name: str) -> fx.Node:
        return self.program.read_weight(self.names[name])

    def look(self, calls: OperatorCalls) -> None:
        """Called for every operator before it is computed: at the place's first one, cut the network by what arrives.

        Raises:
            MoecError: M203 for a text that is too short.
        """
        if calls.node is not self.first:
            return
        values = calls.values(0)
        count = sum(value.numel() // value.shape[-1] for value in values)
        require_tokens(count, self.how.experts, self.ffn.path)
        with torch.inference_mode(False):
            x = joined(values, stride(count))
            self.fit(x, self._drift(x, calls, stride(count)))
        calls.replace(1, self.program.weights[self.names["router.weight"]])  # what is read later is there by then
        if len(calls.node.args) > 2:
            calls.replace(2, self.program.weights[self.names["router.bias"]])

    def _drift(self, x: Tensor, calls: OperatorCalls, every: int) -> Tensor | None:
        """What the stream behind the network as it was lacks here of the untouched model's, for the tokens `[T, H]`
        that are every so many behind each other."""
        if self._untouched is None or isinstance(self._stream, str):
            return None
        drift = self._untouched.at(self._stream, every).sub_(without_network(self._stream, calls, every))
        drift -= dense_of(self.ffn)(x)
        return drift if self.ffn.b_out is None else drift.sub_(in_float32(self.ffn.b_out))

    def fit_to_chance(self) -> None:
        """Cut the network where there is no text, and nothing is fitted to one."""
        self.fit(drawn(self.ffn.hidden, self.how.seed))

    def fit(self, x: Tensor, drift: Tensor | None = None) -> None:
        """Cut the network by what arrives there, `[T, H]`, and put its weights in place. `drift`: see `TextPart`.
        Raises M203 where numbers are not finite."""
        with finite(self.ffn):
            carved = cut(NetworkText(dense_of(self.ffn), x, drift), self.how)
        self.found = carved.shared, carved.errors, carved.step  # and not its matrices, which are weights from here on
        made = carved_weights(self.ffn, carved, f"{self._by}, seed {self.how.seed}")
        for name, value in made.items():
            self.program.weights[self.names[name]] = value

    def facts(self, measured: bool) -> dict[str, Any]:
        """What is reported of it, as plain data; errors only where a text was there."""
        assert self.found is not None
        shared, errors, step = self.found
        found = {"module": self.ffn.path, "active": self.how.active, "shared": shared}
        if not measured:
            return found
        own: dict[str, Any] = {"compared": "stream" if isinstance(self._stream, Stream) else "output"}
        if step is not None:
            own |= {"step": step.taken, "without step": step.before}
        elif self._untouched is not None:
            own["step"] = self._stream if isinstance(self._stream, str) else "the text tells nothing to fit to"
        return found | asdict(errors) | own


class Place(Protocol):
    """Something that is cut by what a text brings to it: a network, or the experts of a mixture."""

    first: fx.Node  # of what replaces it, when it is rewritten

    @property
    def end(self) -> fx.Node: ...

    def rewrite(self, name: str, made: dict[fx.Node, fx.Node]) -> None: ...

    def look(self, calls: OperatorCalls) -> None: ...

    def fit_to_chance(self) -> None: ...

    def bring_back(self, untouched: UntouchedStream) -> None: ...

    def facts(self, measured: bool) -> dict[str, Any]: ...


def carve_in_order(
    program: Program,
    places: Sequence[Place],
    batches: Sequence[Mapping[str, Tensor]],
    untouched: Program | None = None,
) -> None:
    """Fit each place to what the text brings to it when all before it are fitted; by nothing where there is no text,
    since then nothing of it is looked at.

    Args:
        untouched: the program before it was rewritten; it runs beside where places are fitted to its residual stream.

    Raises:
        MoecError: M203 for a text that is too short.
    """
    if not batches:
        for place in places:
            place.fit_to_chance()
        return
    if untouched is not None:
        beside = UntouchedStream(untouched, batches)
        for place in places:
            place.bring_back(beside)
    routers = {place.first for place in places}
    last = next(node for node in reversed(program.graph.nodes) if node in routers)

    def visit(calls: OperatorCalls) -> None:
        for place in places:
            place.look(calls)

    run_in_lockstep(program, batches, visit, until=last)


def drawn(hidden: int, seed: int) -> Tensor:
    """Rows that stand for a text, `[64, H]`."""
    return torch.randn(_DRAWN, hidden, generator=torch.Generator().manual_seed(seed))


def require_tokens(count: int, experts: int, where: str) -> None:
    """Raise M203 for a text that is too short to fit a router to."""
    least = TOKENS_AN_EXPERT * experts
    if count < least:
        what = f"the calibration text has {count} tokens, too few for {experts} experts"
        fewer = count // TOKENS_AN_EXPERT
        fix = f"give one of {least} tokens or more" + (f", or ask for at most {fewer} experts" if fewer > 1 else "")
        raise MoecError("M203", what, where, fix)


def why_not_analytical(ffn: Ffn) -> str:
    """Why CMoE's router cannot be written for a network; empty where it can."""
    rule = ffn.activation
    if rule == Activation(rule.name, rule.gated) and rule.name in _PLAIN:
        return ""
    return f"its activation is none of {', '.join(_PLAIN)} in its plain form"


@contextmanager
def finite(ffn: Ffn) -> Iterator[None]:
    """Say of which network numbers were not finite, as M203."""
    try:
        yield
    except NotFiniteError as error:
        fix = "calibrate on another text, or leave carve out for this model"
        raise MoecError("M203", str(error), ffn.path, fix) from error
