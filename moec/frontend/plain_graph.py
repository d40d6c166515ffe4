"""A graph of a Program as plain data, and back: nodes, arguments, example values and where each node came from.

`torch.export.save` does the same for what it exported, and reading that takes two thirds of the time of a capture: it
makes each tensor of the graph anew. Here equal example values are made once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from moec.frontend.exported_file import is_operator, operator_of
from moec.frontend.plain_sizes import NotPlainError, Plain, Sizes, SizesOf

_NAMED = {torch.dtype: "dtype", torch.memory_format: "format", torch.layout: "layout"}


def plain_graph(graph: fx.Graph) -> dict[str, Plain]:
    """A graph as plain data. Raises NotPlainError for what has no such form."""
    return _Writer().graph(graph)


class _Writer:
    def __init__(self) -> None:
        self._sizes, self._places = Sizes(), dict[fx.Node, int]()
        self._texts: dict[str, int] = {}  # equal ones once: paths of modules and traces repeat a lot
        self._values: dict[str, int] = {}
        self._examples: list[Plain] = []

    def graph(self, graph: fx.Graph) -> dict[str, Plain]:
        nodes = []
        for node in graph.nodes:
            nodes.append(self._node(node))
            self._places[node] = len(self._places)
        return {
            "nodes": nodes,
            "examples": self._examples,
            "texts": list(self._texts),
            "symbols": self._sizes.symbols(),
        }

    def _node(self, node: fx.Node) -> Plain:
        stack = [[key, *map(str, entry)] for key, entry in (node.meta.get("nn_module_stack") or {}).items()]
        where = [self._text(part) for entry in stack for part in entry]
        trace = node.meta.get("stack_trace")
        example = self._example(node.meta["val"]) if "val" in node.meta else None
        called = _name(node.target) if node.op == "call_function" else str(node.target)
        rest = [example, where, None if trace is None else self._text(trace)]
        return [node.op, node.name, called, self._argument(node.args), self._argument(dict(node.kwargs)), *rest]

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def _argument(self, value: Any) -> Plain:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, fx.Node):
            return {"node": self._places[value]}
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, tuple | list):
            return [type(value) is tuple, *map(self._argument, value)]
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {"dict": {name: self._argument(part) for name, part in value.items()}}
        if isinstance(value, slice):
            return {"slice": [self._argument(part) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if type(value) in _NAMED:
            return {_NAMED[type(value)]: str(value).removeprefix("torch.")}
        raise NotPlainError(f"an argument that is a {type(value).__name__}")

    def _example(self, value: Any) -> int:
        plain = self._value(value)
        key = repr(plain)
        if key not in self._values:
            self._values[key] = len(self._examples)
            self._examples.append(plain)
        return self._values[key]

    def _value(self, value: Any) -> Plain:
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, FakeTensor, torch.nn.Parameter) or value.layout != torch.strided:
                raise NotPlainError(f"a {type(value).__name__}")
            numbers = [[self._value(n) for n in part] for part in (value.shape, value.stride())]
            return {"tensor": [*numbers, str(value.dtype)[6:], str(value.device), isinstance(value, FakeTensor)]}
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return {"size": self._sizes.plain(value)}
        if isinstance(value, tuple | list):
            return [type(value) is tuple, *map(self._value, value)]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise NotPlainError(f"an example value that is a {type(value).__name__}")


def _name(target: Any) -> str:
    name = f"torch.ops.{target}" if isinstance(target, OpOverload) else f"{target.__module__}.{target.__name__}"
    if not is_operator(name) or operator_of(name) is not target:
        raise NotPlainError(f"the operator {name}")
    return name


class GraphReader:
    """A graph from what `plain_graph` made of it. Raises ValueError, KeyError or TypeError for anything else."""

    def __init__(self, plain: Mapping[str, Plain]) -> None:
        self._plain, self._texts = plain, plain["texts"]
        self._sizes, self._nodes = SizesOf(plain["symbols"]), list[fx.Node]()
        self._mode = FakeTensorMode(shape_env=self._sizes.environment, allow_non_fake_inputs=True)
        self._examples = [self._value(value) for value in plain["examples"]]

    def graph(self) -> fx.Graph:
        """The graph: its nodes have example values, and say of which module and line they are."""
        graph = fx.Graph()
        for op, name, target, args, kwargs, *meta in self._plain["nodes"]:
            called = operator_of(target) if op == "call_function" else target
            node = graph.create_node(op, called, self._argument(args), self._argument(kwargs), name)
            node.name = name  # as the capture called it, also `input`, which fx would not
            node.meta = self._meta(*meta)
            self._nodes.append(node)
        return graph

    def _meta(self, example: int | None, where: list[int], trace: int | None) -> dict[str, Any]:
        parts = [self._texts[k] for k in where]
        stack = {parts[k]: (parts[k + 1], parts[k + 2]) for k in range(0, len(parts), 3)}
        found = {"nn_module_stack": stack} if stack else {}
        if trace is not None:
            found["stack_trace"] = self._texts[trace]
        return found if example is None else {**found, "val": self._examples[example]}

    def _argument(self, plain: Plain) -> Any:
        if isinstance(plain, list):
            parts = [self._argument(part) for part in plain[1:]]
            return tuple(parts) if plain[0] else parts
        if not isinstance(plain, dict):
            return plain
        ((kind, value),) = plain.items()
        if kind == "dict":
            return {name: self._argument(part) for name, part in value.items()}
        if kind == "slice":
            return slice(*map(self._argument, value))
        if kind == "node":
            return self._nodes[value]
        return float(value) if kind == "float" else _of_torch(kind, value)

    def _value(self, plain: Plain) -> Any:
        if isinstance(plain, list):
            parts = [self._value(part) for part in plain[1:]]
            return tuple(parts) if plain[0] else parts
        if not isinstance(plain, dict):
            return plain
        if "size" in plain:
            return self._sizes.value(plain["size"])
        shape, stride, dtype, device, fake = plain["tensor"]
        numbers = [[self._value(n) for n in part] for part in (shape, stride)]
        options = {"dtype": _of_torch("dtype", dtype), "device": torch.device(device)}
        if not fake:
            return torch.empty_strided(*numbers, **options)
        with self._mode:
            return torch.empty_strided(*numbers, **options)


def _of_torch(kind: str, name: str) -> Any:
    if kind == "device":
        return torch.device(name)
    found = getattr(torch, name)
    if {v: k for k, v in _NAMED.items()}[kind] is not type(found):
        raise ValueError(f"torch.{name} is no {kind}")
    return found
