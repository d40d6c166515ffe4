"""Where the dialect's operators are spoken of, nobody counts their arguments: names stand in `moec/program` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.many import none

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("moec", "passes", "backends") for p in (ROOT / folder).rglob("*.py"))
READERS = ("moec/program/dialect_call.py", "moec/program/moe_call.py")
OPERATORS = {"experts", "moe", "route", "dequantize", "dequantize_float"}
NAMES = {"EXPERTS", "MOE", "ROUTE", "DEQUANTIZE", "DEQUANTIZE_FLOAT", "moe_nodes"}
CALLS = {"MoeCall", "RouteCall", "DequantizeCall", "DequantizeFloatCall"}
# functions that speak of the dialect and look at arguments of other operators: whose
OTHERS = {
    "moec/experts/cut.py:_cut_route": "the linear layer of the logits",
    "moec/huggingface/saving/upcycled.py:_router_before": "the linear layer of the logits",
    "moec/program/observed.py:with_routers": "the graph's outputs",
    "moec/program/observed.py:route_of": "an output of moec::route",
    "moec/recognition/router_place.py:_routed": "views, and an output of moec::route",
    "moec/recognition/router_place.py:find_router": "the product with the router, at a position from the schema",
    "moec/recognition/router_place.py:put": "the product with the router, at a position from the schema",
    "moec/recognition/router_region.py:is_routed": "views, and an output of moec::route",
    "moec/recognition/router_region.py:route_behind": "outputs of moec::route",
    "moec/recognition/weight_roles.py:is_mixed": "index_select and cat",
}


def speaks_of_the_dialect(function: ast.AST) -> bool:
    """Whether a function names an operator of the dialect, as a constant or as `ops.…`, or one of its views."""
    names = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
    attributes = [n for n in ast.walk(function) if isinstance(n, ast.Attribute) and n.attr in OPERATORS]
    return bool(names & (NAMES | CALLS)) or any(ast.unparse(a.value) in ("ops", "torch.ops.moec") for a in attributes)


def counts_arguments(function: ast.AST) -> bool:
    """Whether it looks at `….args`, or takes an argument by a number."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and node.attr == "args":
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ("args", "given"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            first = node.args[0]
            by_number = isinstance(first, ast.Constant) and type(first.value) is int
            if by_number and node.func.attr in ("update_arg", "replace", "replace_each", "values"):
                return True
    return False


def counting(source: str) -> Iterator[str]:
    """The names of functions that speak of the dialect and count arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and speaks_of_the_dialect(node) and counts_arguments(node):
            yield node.name


def test_nobody_counts_the_arguments_of_the_dialects_operators() -> None:
    names = {str(p.relative_to(ROOT)): p for p in SOURCES}
    found = {f"{name}:{function}" for name, path in names.items() for function in counting(path.read_text())}
    none(sorted(place for place in found - set(OTHERS) if place.split(":")[0] not in READERS))
    assert set(OTHERS) <= found, "every exception is one"


@pytest.mark.parametrize(
    "line",
    [
        "x = [n.args[3] for n in program.nodes(EXPERTS)]",
        "x, ids, *rest = node.args if node.target is MOE else ()",
        "y = args[0] if target is torch.ops.moec.route.default else None",
        "for n in moe_nodes(program): n.update_arg(2, new)",
        "for n in program.nodes(ops.dequantize.default): stop.replace(0, packed)",
    ],
)
def test_counting_is_seen(line: str) -> None:
    assert list(counting(f"def f():\n    {line}\n")) == ["f"]


def test_names_and_other_operators_are_not_counted() -> None:
    assert list(counting("def f():\n    return [MoeCall(n).w_in for n in moe_nodes(program)]\n")) == []
    assert list(counting("def f():\n    return node.args[0] if node.target is aten.linear.default else None\n")) == []
