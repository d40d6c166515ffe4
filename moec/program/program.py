"""The Program: a small fx graph on the meta device, and a table of lazy weights."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, fx, nn

import moec.dialect  # noqa: F401  # registers the operators that a graph may hold
from moec.errors import MoecError
from moec.program.attributes import attach as attach
from moec.program.attributes import detach
from moec.program.conditions import Assumptions, Condition, Values
from moec.program.decoder_signature import complete
from moec.program.dialect_call import ROUTE, RouteCall
from moec.program.functional import drop_dead
from moec.program.original import Original
from moec.program.signature import PER
from moec.program.signature import PLUS as PLUS
from moec.program.signature import Input as Input
from moec.program.signature import dynamic_dimensions as dynamic_dimensions
from moec.program.signature import identifier as identifier
from moec.program.trainable import TrainableProgram
from moec.weights.lazy import Weight, from_tensor

META, CPU = torch.device("meta"), torch.device("cpu")
TRAINED = "train"  # stands in a program's history where its weights were trained


@dataclass(frozen=True)
class AppliedPass:
    """What one pass did to a program; `by_call`: see `moec.pipeline.passes.Pass`; `widths`: in bits, of its grids;
    `rewires`: whether it is not moec's own and changed operators, and if it is exact, weights with them."""

    name: str
    rewrites: int
    contract: str
    by_call: bool = False
    widths: tuple[int, ...] = ()
    rewires: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists


@dataclass
class Program:
    """A captured model.

    Attributes:
        graph_module: fx graph of ATen and `moec::` operators. Placeholders are the inputs in order, the output is a
            flat tuple, and every `get_attr` names an entry of `weights`; parameters in it are meta tensors.
        weights: name -> lazy weight. Two names may share one weight (tied embeddings).
        inputs, outputs: signature.
        source: where the program came from, as text.
        history: the passes that were applied.
        conditions: on the sizes of the inputs, for which alone the graph is what the model does.
        values: that inputs may hold, where the graph looks them up in a table.
        edges: sizes at which the capture assumed something that the model did not say, and that a proof looks at.
        original: what the model was beside what it computes.
    """

    graph_module: fx.GraphModule
    weights: dict[str, Weight]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    source: str = "memory"
    history: list[AppliedPass] = field(default_factory=list)
    conditions: tuple[Condition, ...] = ()
    values: tuple[Values, ...] = ()
    edges: tuple[dict[str, int], ...] = ()
    original: Original = field(default_factory=Original)

    @property
    def assumptions(self) -> Assumptions:
        """Conditions and values, as they stand in an engine's files."""
        return Assumptions(self.conditions, self.values)

    @property
    def graph(self) -> fx.Graph:
        """The fx graph."""
        return self.graph_module.graph

    def nodes(self, *targets: Any) -> list[fx.Node]:
        """All call nodes of these operators, in graph order. An overload packet stands for all its overloads."""
        return [
            n
            for n in self.graph.nodes
            if n.op == "call_function" and (n.target in targets or getattr(n.target, "overloadpacket", None) in targets)
        ]

    @property
    def approximate(self) -> bool:
        """Whether a pass that changes the numbers was applied."""
        return any(step.contract == "approximate" for step in self.history)

    @property
    def by_call(self) -> bool:
        """Whether what it says of a token depends on what else comes in the same call: a pass declared it, or experts
        have a capacity, over which tokens are dropped."""
        dropping = (RouteCall(node).capacity is not None for node in self.nodes(ROUTE))
        return any(step.by_call for step in self.history) or any(dropping)

    def output_signature(self) -> tuple[Input, ...]:
        """Names, dtypes and shapes of the outputs; dynamic dimensions have the inputs' names, or are sums of them."""
        nodes = list(self.graph.nodes)
        sizes = [n.meta["val"].shape for n in nodes if n.op == "placeholder"]
        pairs = [p for shape, i in zip(sizes, self.inputs, strict=True) for p in zip(shape, i.shape, strict=True)]
        names = {str(size): dim for size, dim in pairs if isinstance(dim, str)}
        values = [n.meta["val"] for n in nodes[-1].args[0]]
        return tuple(
            Input(name, value.dtype, tuple(s if isinstance(s, int) else named_size(str(s), names) for s in value.shape))
            for name, value in zip(self.outputs, values, strict=True)
        )

    # ------------------------------------------------------------------ weights
    @property
    def size_bytes(self) -> int:
        """Of all weights; one that has several names counts once."""
        return sum(w.size_bytes for w in {id(w): w for w in self.weights.values()}.values())

    def weight_of(self, node: Any) -> Weight | None:
        """The weight that a `get_attr` node reads, None for any other node."""
        return self.weights.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "get_attr" else None

    def add_weight(self, name: str, weight: Weight) -> str:
        """Enter a weight under a name that is not taken; returns the name."""
        free, n = name, 1
        while free in self.weights:
            free, n = f"{name}_{n}", n + 1
        self.weights[free] = weight
        attach(self.graph_module, free, weight.meta())
        return free

    def read_weight(self, name: str) -> fx.Node:
        """Insert a `get_attr` node for a weight at the graph's current insert point."""
        node = self.graph.create_node("get_attr", name)
        node.meta["val"] = self.weights[name].meta()
        return node

    def drop_unused_weights(self) -> None:
        """Forget weights that no node reads any more."""
        used = {n.target for n in self.graph.nodes if n.op == "get_attr"}
        for name in [n for n in self.weights if n not in used]:
            del self.weights[name]
            detach(self.graph_module, name)

    # ------------------------------------------------------------------ running
    @overload
    def module(self, device: torch.device | str = "cpu", trainable: Literal[False] = False) -> fx.GraphModule: ...

    @overload
    def module(self, device: torch.device | str = "cpu", *, trainable: Literal[True]) -> TrainableProgram: ...

    def module(self, device: torch.device | str = "cpu", trainable: bool = False) -> nn.Module:
        """The program as an `nn.Module` with its weights loaded (on "meta": without data). Shared weights stay shared.

        It returns the outputs as a flat tuple; a trainable one is called, and answers, like the captured model, see
        `moec.program.trainable.TrainableProgram`.
        """
        device = torch.device(device)
        graph = place(copy.deepcopy(self.graph), device)
        root = TrainableProgram(self, graph) if trainable else nn.Module()
        loaded: dict[int, Tensor] = {}
        for name, weight in self.weights.items():
            if id(weight) not in loaded:
                value = weight.meta() if device == META else weight.load().to(device)
                learns = trainable and value.is_floating_point() and name not in self.original.fixed
                loaded[id(weight)] = nn.Parameter(value.clone()) if learns else value
            attach(root, name, loaded[id(weight)])
        return root if trainable else fx.GraphModule(root, graph)

    def trained(self, tensors: Mapping[str, Tensor]) -> Program:
        """The same program with other values for its weights, by name; they are copied. Its history says that it was
        trained: copies that an upcycle made are no longer equal."""
        found = self.clone()
        made: dict[int, Weight] = {}
        for name, old in self.weights.items():
            if name in tensors and id(old) not in made:
                value = from_tensor(tensors[name].detach().to(CPU, copy=True), name)
                made[id(old)] = replace(value, relaid=any(part.relaid for part in old.expression()))
            found.weights[name] = made.get(id(old), old)
        found.history.append(AppliedPass(TRAINED, 1, "exact"))
        return found

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run once in eager PyTorch, loading all weights; a decoder's absent cache is empty. For repeated runs keep an
        `EagerEngine`."""
        given = complete(self.inputs, inputs)
        with torch.inference_mode():
            values = self.module()(*(given[i.name] for i in self.inputs))
        return dict(zip(self.outputs, values, strict=True))

    # ------------------------------------------------------------------ text, checks, copies
    def text(self) -> str:
        """The program as Python source with its weights in comments: diffable, and equal only for equal programs."""
        signature = ", ".join(f"{i.name}: {str(i.dtype)[6:]}{list(i.shape)}" for i in self.inputs)
        table = [f"# {name}: {str(w.dtype)[6:]}{list(w.shape)} = {w.origin}" for name, w in self.weights.items()]
        body = self.graph.python_code("self", include_stride=False).src
        return "\n".join(
            [
                f"# program from {self.source}",
                f"# inputs: {signature}",
                f"# outputs: {', '.join(self.outputs)}",
                *([f"# holds where: {self.assumptions}"] if str(self.assumptions) else []),
                *table,
                body.strip(),
                "",
            ]
        )

    def digest(self) -> str:
        """SHA-256 of `text()`."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def check(self) -> None:
        """Raise M702 unless the program is well formed."""
        problem = next(iter(self._problems()), None)
        if problem:
            after = self.history[-1].name if self.history else "capture"
            raise MoecError(
                "M702", f"malformed program: {problem}", f"after {after}", "report this with `moec compile --dump DIR`"
            )

    def _problems(self) -> Iterator[str]:
        try:
            self.graph.lint()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            yield str(error).splitlines()[0]
        placeholders = [n.target for n in self.graph.nodes if n.op == "placeholder"]
        if placeholders != [i.identifier for i in self.inputs]:
            yield f"placeholders {placeholders} are not the inputs"
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target not in self.weights:
                yield f"{node.name} reads {node.target!r}, which has no weight"
            if node.op in ("call_module", "call_method"):
                yield f"{node.name} is a {node.op}"
            if node.op == "output" and len(node.args[0]) != len(self.outputs):
                yield f"{len(node.args[0])} outputs, {len(self.outputs)} names"

    def clone(self) -> Program:
        """A copy whose graph can be rewritten apart; weights are shared, being immutable."""
        root = nn.Module()
        for name, weight in self.weights.items():
            attach(root, name, weight.meta())
        return Program(
            fx.GraphModule(root, copy.deepcopy(self.graph)),
            dict(self.weights),
            self.inputs,
            self.outputs,
            self.source,
            list(self.history),
            self.conditions,
            self.values,
            self.edges,
            self.original,
        )

    def finish(self) -> None:
        """Call after rewriting: remove dead nodes and weights, recompile."""
        drop_dead(self.graph)
        self.drop_unused_weights()
        self.graph_module.recompile()


_PARTS = re.compile(r"\(*(?P<of>[^()]+)\)* ?// ?(?P<per>\d+)\)*")  # as torch writes a size that is so many parts


def named_size(size: str, names: Mapping[str, str]) -> str:
    """A symbolic size by the inputs' names; torch writes the terms of a sum in an order of its own."""
    parts = _PARTS.fullmatch(size)
    if parts:
        return named_size(parts["of"], names) + PER + parts["per"]
    terms = [names.get(term, term) for term in size.split(PLUS)]
    order, sums = list(names.values()), {frozenset(dim.split(PLUS)): dim for dim in names.values()}
    terms.sort(key=lambda term: order.index(term) if term in order else len(order))
    return sums.get(frozenset(terms), PLUS.join(terms))


def place(graph: fx.Graph, device: torch.device) -> fx.Graph:
    """Point every `device` argument of a graph at `device`, in place."""

    def swap(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    for node in graph.nodes:
        if any(isinstance(a, torch.device) for a in [*node.args, *node.kwargs.values()]):
            node.args, node.kwargs = tuple(swap(a) for a in node.args), {k: swap(a) for k, a in node.kwargs.items()}
    return graph


def users(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Every node that reads one of these."""
    return {user for node in nodes for user in node.users}
