"""Whether an ONNX graph is well formed: what every step of a lowering must leave behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from moec.errors import MoecError

Scope = dict[str, ir.Value]  # the values that a node may read, by name


def check_graph(model: ir.Model, after: str) -> None:
    """Raise M702, naming the step that was the last, unless nodes stand in topological order and read only what is
    there, names are unique, initializers have their tensors, and the opset of every domain is imported."""
    problem = next(_problems(model), None)
    if problem:
        fix = "report this with `moec compile --dump DIR`"
        raise MoecError("M702", f"malformed ONNX graph: {problem}", f"after {after}", fix)


def _problems(model: ir.Model) -> Iterator[str]:
    """Every problem in words, main graph first."""
    yield from _of_graph(model.graph, {}, model.opset_imports)
    for function in model.functions.values():
        yield from _of_graph(function, {}, function.opset_imports)


def _of_graph(graph: ir.Graph | ir.Function, outer: Scope, imports: Mapping[str, int]) -> Iterator[str]:
    scope = dict(outer)
    for value in graph.inputs:
        yield from _enter(scope, value)
    if isinstance(graph, ir.Graph):
        for name, value in graph.initializers.items():
            yield from _of_initializer(name, value, scope)
    for node in graph:
        yield from _of_node(node, scope, imports)
    for value in graph.outputs:
        if scope.get(str(value.name)) is not value:
            yield f"output {value.name!r} is computed by no node of its graph"


def _of_initializer(name: str, value: ir.Value, scope: Scope) -> Iterator[str]:
    if value.name != name:
        yield f"initializer {name!r} calls itself {value.name!r}"
    if value.const_value is None:
        yield f"initializer {name!r} has no tensor"
    if scope.get(name) is not value:  # an input may have a default
        yield from _enter(scope, value)


def _of_node(node: ir.Node, scope: Scope, imports: Mapping[str, int]) -> Iterator[str]:
    if node.domain not in imports:
        yield f"{node.op_type} {node.name!r} is of domain {node.domain!r}, which is not imported"
    for value in node.inputs:
        if value is not None and scope.get(str(value.name)) is not value:
            yield f"{node.op_type} {node.name!r} reads {value.name!r}, which nothing before it computes"
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _of_graph(attribute.as_graph(), scope, imports)
    for value in node.outputs:
        if value.name or value.uses():
            yield from _enter(scope, value)


def _enter(scope: Scope, value: ir.Value) -> Iterator[str]:
    """Let a value be read from here on."""
    if not value.name:
        yield f"a value of {value.producer()!r} has no name"
    elif value.name in scope:
        yield f"two values are called {value.name!r}"
    scope[str(value.name)] = value
