"""A graph in the middle of its lowering, as an engine: what is ONNX already runs in ONNX Runtime, what is still an
opaque node of moec's runs as the dialect's own reference.

A graph is cut into layers: nodes that wait for no opaque node, the opaque nodes that wait for these, and so on. Each
layer of ordinary nodes is a session of its own, with the runtime's optimisations off, so that what differs between two
steps is what the step did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from moec.backends.onnx.assumed import read_assumptions
from moec.backends.onnx.cache_rows import COMPACT, call_compact
from moec.backends.onnx.emit import DOMAIN
from moec.backends.onnx.sessions import Providers, open_on
from moec.backends.onnx.steps import Step, each_step
from moec.backends.onnx.tensors import DTYPES, weight_of
from moec.backends.onnx.writing import write_model
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.conditions import Assumptions, Condition
from moec.program.program import Input

CPU = ("CPUExecutionProvider",)
OPERATORS = {
    "Experts": torch.ops.moec.experts.default,
    "Moe": torch.ops.moec.moe.default,
    "Attention": torch.ops.moec.attention.default,
    "LinearAttention": torch.ops.moec.linear_attention.default,
    "SelectiveScan": torch.ops.moec.selective_scan.default,
    "CausalConv": torch.ops.moec.causal_conv.default,
    "Dequantize": torch.ops.moec.dequantize.default,
    "DequantizeFloat": torch.ops.moec.dequantize_float.default,
}
Values = dict[str, Tensor | list[Tensor]]  # by a value's name; what a split gives is a list


def stages_of(
    model: ir.Model,
    steps: Sequence[Step],
    inputs: tuple[Input, ...],
    providers: Providers = CPU,
    prepare: Callable[[ir.Model], Condition | None] | None = None,
    register: Callable[[Any], None] | None = None,
) -> Iterator[tuple[str, Engine]]:
    """The name of each step that changes the graph and an engine that runs it as it then is, the export first.

    Args:
        model: as it was exported; the steps are applied to it one by one, as the stages are asked for.
        inputs: the program's.
        providers: of ONNX Runtime.
        prepare: what must be done to a copy of the graph, in place, before the runtime can take it; a condition on
            sizes that it gives is the engine's.
        register: lets sessions with some `onnxruntime.SessionOptions` know operators that are not the runtime's.
    """
    for name, result in each_step(model, steps):
        if result.modified:
            graph = model.clone()
            room = None if prepare is None else prepare(graph)
            engine = GraphEngine(graph, inputs, providers, register)
            engine.assume(Assumptions(() if room is None else (room,)))
            yield name, engine


class GraphEngine(Engine):
    """Runs an ONNX graph that may hold opaque nodes. Its weights are written to a temporary folder at the first run.

    Args:
        model: the graph; not to be changed any more.
        inputs: its signature.
        providers: of ONNX Runtime.
        register: see `stages_of`.
    """

    def __init__(
        self,
        model: ir.Model,
        inputs: tuple[Input, ...],
        providers: Providers = CPU,
        register: Callable[[Any], None] | None = None,
    ) -> None:
        self.name, self.inputs = "graph", inputs
        self.outputs = tuple(str(value.name) for value in model.graph.outputs)
        self._model, self._providers, self._layers = model, list(providers), layers_of(model.graph)
        self.assume(read_assumptions(model.metadata_props, self.name))
        self._folder: TemporaryDirectory[str] | None = None
        self._sessions: dict[int, Any] = {}
        self._register = register

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises M208 when ONNX Runtime cannot run a part of the graph."""
        return call_compact(self._outputs, inputs) if COMPACT in self._model.metadata_props else self._outputs(inputs)

    def _outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = self._run(inputs)
        return {str(v.name): self._read(values, v) for v in self._model.graph.outputs}

    def intermediates(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every floating-point value of the main graph, for `moec.proof.bisection`."""
        values = {name: value for name, value in self._run(inputs).items() if isinstance(value, Tensor)}
        return {name: value for name, value in values.items() if value.is_floating_point()}

    def close(self) -> None:
        """Drop the sessions and the folder with their weights."""
        self._sessions.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _run(self, inputs: Mapping[str, Tensor]) -> Values:
        values: Values = dict(inputs)
        for number, (plain, opaque) in enumerate(self._layers):
            if plain:
                values |= self._run_plain(number, plain, values)
            for node in opaque:
                found = run_opaque(node, partial(self._read, values))
                values |= {str(v.name): t for v, t in zip(node.outputs, found, strict=True)}
        return values

    def _read(self, values: Values, value: ir.Value) -> Tensor:
        found = values.get(str(value.name))
        if isinstance(found, Tensor):
            return found
        weight = weight_of(value)
        assert weight is not None, f"{value.name} is neither computed nor a weight"
        return weight.load()

    # ------------------------------------------------------------------ ordinary nodes
    def _run_plain(self, number: int, nodes: list[ir.Node], values: Values) -> Values:
        wanted = [v for node in nodes for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
        try:
            if number not in self._sessions:
                self._sessions[number] = self._session(number, nodes, wanted, values)
            session, names = self._sessions[number], [str(v.name) for v in wanted]
            feeds = {i.name: _as_arrays(values[i.name]) for i in session.get_inputs()}
            found = session.run(names, feeds)
        except MoecError:
            raise
        except Exception as error:  # the runtime has a type of its own for everything
            raise MoecError(
                "M208",
                f"ONNX Runtime cannot run this graph: {str(error).strip().splitlines()[0][:300]}",
                f"{nodes[0].name} to {nodes[-1].name}",
                "look at the graph with `moec compile --dump DIR`",
            ) from error
        return {name: _as_tensors(value) for name, value in zip(names, found, strict=True)}

    def _session(self, number: int, nodes: list[ir.Node], wanted: list[ir.Value], values: Values) -> Any:
        import onnxruntime as ort

        self._folder = self._folder or TemporaryDirectory(prefix="moec-")
        path = Path(self._folder.name) / f"{number}.onnx"
        write_model(self._part(nodes, wanted, values), path)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self._register is not None:
            self._register(options)
        return open_on(self._providers, str(path), options)

    def _part(self, nodes: list[ir.Node], wanted: list[ir.Value], values: Values) -> ir.Model:
        """A model of some nodes; its inputs are typed by the values that they are about to get."""
        model, own = self._model, set(nodes)
        read = [v for node in nodes for v in _read_by(node) if v.producer() not in own and str(v.name) in values]
        graph = ir.convenience.extract(model.graph, list(dict.fromkeys(read)), wanted)
        for value in graph.inputs:
            given = values[str(value.name)]
            if isinstance(given, Tensor):
                value.type, value.shape = ir.TensorType(DTYPES[given.dtype]), ir.Shape([None] * given.dim())
            else:
                value.type, value.shape = ir.SequenceType(ir.TensorType(DTYPES[given[0].dtype])), None
        if not model.functions:
            graph.opset_imports.pop(DOMAIN, None)
        functions = [function.clone() for function in model.functions.values()]
        return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def _as_arrays(value: Tensor | list[Tensor]) -> Any:
    return value.numpy(force=True) if isinstance(value, Tensor) else [_as_arrays(each) for each in value]


def _as_tensors(value: Any) -> Any:
    """A split gives ONNX Runtime a sequence, which comes as a list."""
    return [_as_tensors(each) for each in value] if isinstance(value, list) else torch.from_numpy(value)


def layers_of(graph: ir.Graph) -> list[tuple[list[ir.Node], list[ir.Node]]]:
    """The nodes of a graph in layers: ordinary ones, then opaque ones that read what these and earlier layers give."""
    layer: dict[ir.Node, int] = {}
    found: list[tuple[list[ir.Node], list[ir.Node]]] = []
    for node in graph:
        before = [p for v in _read_by(node) if (p := v.producer()) is not None and p in layer]
        layer[node] = max((layer[p] + is_opaque(p) for p in before), default=0)
        while len(found) <= layer[node]:
            found.append(([], []))
        found[layer[node]][is_opaque(node)].append(node)
    return found


def is_opaque(node: ir.Node) -> bool:
    """Whether a node is an operator of the dialect."""
    return node.domain == DOMAIN and node.op_type in OPERATORS


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, its branches' nodes included."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _read_by(inner)


def run_opaque(node: ir.Node, read: Callable[[ir.Value], Tensor]) -> tuple[Tensor, ...]:
    """What the dialect's reference makes of a node's inputs, one tensor an output."""
    operator = OPERATORS[node.op_type]
    arguments = [None if value is None else read(value) for value in node.inputs]
    rule = {}
    for argument in operator._schema.arguments:
        if argument.kwarg_only and argument.name in node.attributes:
            rule[argument.name] = _setting(str(argument.real_type), node.attributes[argument.name].value)
    with torch.inference_mode():
        found = operator(*arguments, **rule)
    return found if isinstance(found, tuple) else (found,)


def _setting(kind: str, value: Any) -> Any:
    """An attribute as the torch operator takes it: ONNX has neither truth values nor torch's dtypes."""
    if kind == "bool":
        return bool(value)
    if "ScalarType" in kind:
        return next((ours for ours, theirs in DTYPES.items() if int(theirs) == value), None)
    return value
