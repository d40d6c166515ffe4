"""Putting ONNX nodes in the place of one node of a graph, under names that say where they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.weights.lazy import Weight

MICROSOFT = "com.microsoft"
DOMAIN = "moec"  # of the dialect's operators, and of functions of a model


def take_place(new: ir.Value, old: ir.Value) -> None:
    """Let a value take the name, the type and every use of another, a graph's output included."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.name = None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


class Emitter:
    """Emits nodes in front of one node, in the order of the calls, and finally lets the last of them take its place.

    Calling it emits a node: `emit("Gather", x, index, axis=0)` returns its output.
    Names are `<node>/<op>_<n>`: equal graphs get equal names.

    Args:
        graph: the graph that the node stands in.
        node: the node to be replaced.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.name = node.name or str(node.outputs[0].name)
        self._count = count()
        self._body: ir.Graph | None = None  # of a branch

    def __call__(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self.several(1, op, *inputs, domain=domain, **attributes)[0]

    def several(
        self, outputs: int, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Emit a node with several outputs."""
        name = f"{self.name}/{op}_{next(self._count)}"
        values = tuple(ir.Value(name=name if outputs == 1 else f"{name}.{n}") for n in range(outputs))
        node = ir.node(op, inputs, attributes, domain=domain, outputs=values, name=name)
        if self._body is None:
            self.graph.insert_before(self.node, node)
        else:
            self._body.append(node)
        return values

    def branch(self, name: str) -> Emitter:
        """An emitter into a new subgraph; constants and weights go to the main graph, where all branches read them."""
        inner = Emitter(self.graph, self.node)
        inner._count = self._count
        inner._body = ir.Graph([], [], nodes=[], name=f"{self.name}/{name}_{next(self._count)}")
        return inner

    def choose(
        self, condition: ir.Value, then: tuple[Emitter, ir.Value], otherwise: tuple[Emitter, ir.Value]
    ) -> ir.Value:
        """Emit an `If` over two branches, each given with its result."""
        return self.choose_several(condition, then, otherwise)[0]

    def choose_several(
        self,
        condition: ir.Value,
        then: tuple[Emitter, *tuple[ir.Value, ...]],
        otherwise: tuple[Emitter, *tuple[ir.Value, ...]],
    ) -> tuple[ir.Value, ...]:
        """Emit an `If` over two branches, each given with as many results."""
        for branch, *results in (then, otherwise):
            assert branch._body is not None
            branch._body.outputs.extend(results)
        return self.several(len(then) - 1, "If", condition, then_branch=then[0]._body, else_branch=otherwise[0]._body)

    def scan(
        self,
        body: Callable[..., tuple[ir.Value, ...]],
        states: Sequence[ir.Value],
        given: Sequence[ir.Value],
        axis: int,
    ) -> tuple[ir.Value, ...]:
        """Emit a `Scan` along an axis: the last states, and what was found at each step, along the same axis.

        Args:
            body: emits one step; it gets an emitter, the states, and the slice of each value that is given. It returns
                the next states, and what it found.
            states, given: of float32.
        """
        inner = self.branch("body")
        assert inner._body is not None
        names = (f"{inner._body.name}.{n}" for n in count())
        inner._body.inputs.extend(
            ir.Value(name=next(names), type=ir.TensorType(ir.DataType.FLOAT)) for _ in (*states, *given)
        )
        results = body(inner, *inner._body.inputs)
        inner._body.outputs.extend(results)
        return self.several(
            len(results), "Scan", *states, *given, body=inner._body, num_scan_inputs=len(given),
            scan_input_axes=[axis] * len(given), scan_output_axes=[axis] * (len(results) - len(states)),
        )  # fmt: skip

    def constant(self, value: int | Sequence[int] | np.ndarray[Any, Any], dtype: Any = np.int64) -> ir.Value:
        """A small constant, int64 by default; equal constants are one initializer."""
        array = np.asarray(value) if isinstance(value, np.ndarray) else np.asarray(value, dtype)
        text = f"moec/{array.dtype}{list(array.shape)}:{','.join(map(repr, array.reshape(-1).tolist()))}"
        if text not in self.graph.initializers:
            tensor = ir.tensor(array, name=text)
            self.graph.register_initializer(
                ir.Value(name=text, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
            )
        return self.graph.initializers[text]

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        """A scalar constant of a float dtype (bfloat16 too, which numpy lacks)."""
        text = f"moec/{dtype.name.lower()}[]:{value!r}"
        if text not in self.graph.initializers:
            tensor = ir.Tensor(np.asarray(value, dtype.numpy()), dtype=dtype, name=text)
            self.graph.register_initializer(
                ir.Value(name=text, type=ir.TensorType(dtype), shape=ir.Shape(()), const_value=tensor)
            )
        return self.graph.initializers[text]

    def weight(self, weight: Weight, role: str, kind: type[WeightTensor] = WeightTensor) -> ir.Value:
        """A lazy weight as an initializer named after the node and its role there."""
        return add_initializer(self.graph, weight, f"{self.name}.{role}", kind)

    def cast(self, value: ir.Value, have: ir.DataType, want: ir.DataType) -> ir.Value:
        """The value in another dtype; itself when it has that already."""
        return value if have == want else self("Cast", value, to=int(want))

    def wide(self, value: ir.Value) -> ir.Value:
        """The value in float32; one of no dtype is taken to be so."""
        return self.cast(value, value.dtype or ir.DataType.FLOAT, ir.DataType.FLOAT)

    def replace(self, result: ir.Value) -> None:
        """Let a value that was emitted take the place, the name and the type of the node's output; removes the node."""
        self.replace_several([result])

    def replace_several(self, results: Sequence[ir.Value]) -> None:
        """The same for a node of several outputs."""
        for new, old in zip(results, self.node.outputs, strict=True):
            take_place(new, old)
        inputs = [v for v in self.node.inputs if v is not None]
        self.graph.remove(self.node, safe=True)
        for value in inputs:
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                self.graph.initializers.pop(str(value.name), None)
