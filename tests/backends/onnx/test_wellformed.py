"""Each way in which a graph can be malformed is found, and blamed on the step that was the last."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from moec.backends.onnx.wellformed import check_graph
from moec.errors import MoecError
from tests.backends.onnx.graphs import add, branch, product


def out_of_order(model: ir.Model) -> None:
    first, last = list(model.graph)
    model.graph.remove(first)
    model.graph.insert_after(last, first)


def dangling(model: ir.Model) -> None:
    first = model.graph[0]
    first.replace_input_with(0, ir.node("Relu", [model.graph.inputs[0]], name="elsewhere").outputs[0])


def same_name(model: ir.Model) -> None:
    model.graph[0].outputs[0].name = "w"


def no_tensor(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = None


def unknown_domain(model: ir.Model) -> None:
    model.graph[0].domain = "com.microsoft"


def no_output(model: ir.Model) -> None:
    model.graph.outputs[0] = ir.Value(name="y2", type=ir.TensorType(ir.DataType.FLOAT))


def wrong_branch(model: ir.Model) -> None:
    """A branch that reads a value that comes after it."""
    graph, last = model.graph, model.graph[-1]
    flag = add(graph, "IsInf", [graph.inputs[0]], "flag")
    late = ir.node("Relu", [graph.inputs[0]], name="late")
    late.outputs[0].name = "late"
    branches = {"then_branch": branch(late.outputs[0], "then"), "else_branch": branch(graph.inputs[0], "else")}
    add(graph, "If", [flag], "chosen", **branches)
    graph.insert_after(graph[-1], late)
    assert last in graph


WRONG: dict[Callable[[ir.Model], None], str] = {
    out_of_order: "'h', which nothing before it computes",
    dangling: "which nothing before it computes",
    same_name: "two values are called 'w'",
    no_tensor: "initializer 'w' has no tensor",
    unknown_domain: "of domain 'com.microsoft', which is not imported",
    no_output: "output 'y2' is computed by no node",
    wrong_branch: "'late', which nothing before it computes",
}


def test_a_graph_with_branches_and_a_function_is_well_formed() -> None:
    model = product()
    graph = model.graph
    flag = add(graph, "IsInf", [graph.inputs[0]], "flag")
    add(graph, "If", [flag], "c", then_branch=branch(flag, "a"), else_branch=branch(graph.inputs[0], "b"))
    inner = ir.Graph([ir.Value(name="x")], [], nodes=[], opset_imports={"": 20})
    inner.outputs.append(add(inner, "Relu", [inner.inputs[0]], "x2"))  # names of a function are its own
    model.functions["moec", "F", ""] = ir.Function("moec", "F", graph=inner, attributes=())
    check_graph(model, "a step")


@pytest.mark.parametrize("spoil", WRONG, ids=lambda f: f.__name__)
def test_what_is_malformed_is_named_with_the_step(spoil: Callable[[ir.Model], None]) -> None:
    model = product()
    spoil(model)
    with pytest.raises(MoecError) as caught:
        check_graph(model, "some-step")
    assert caught.value.code == "M702" and caught.value.where == "after some-step"
    assert WRONG[spoil] in caught.value.what


def test_a_function_is_looked_at_too() -> None:
    model = product()
    inner = ir.Graph([ir.Value(name="x")], [], nodes=[], opset_imports={"": 20})
    inner.outputs.append(add(inner, "QuickGelu", [inner.inputs[0]], "y", domain="com.microsoft"))
    model.functions["moec", "F", ""] = ir.Function("moec", "F", graph=inner, attributes=())
    with pytest.raises(MoecError, match=r"com\.microsoft"):
        check_graph(model, "a step")
