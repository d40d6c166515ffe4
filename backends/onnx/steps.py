"""A lowering: a list of named steps over an ONNX graph, which all backends run, show and check in the same way.

A step is a pass of onnx_ir. After each the graph is checked, so that a malformed one is blamed on the step that made
it; `Progress.step` gets the step's name and can ask for the graph's text, which is how `moec compile --dump` writes it
down; and `moec.backends.onnx.evaluation` runs the graph as it then is, which is how `moec verify --bisect` finds the
first step that changes the numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.text import text_of
from moec.backends.onnx.wellformed import check_graph
from moec.progress import Progress

EXPORT = "export to ONNX"  # what is there before the first step


@dataclass
class StepResult(ir.passes.PassResult):  # type: ignore[misc]  # onnx_ir is Any to mypy
    """What a step did.

    Attributes:
        model, modified: as in onnx_ir; modified is found by comparison, whatever the step says.
        facts: for the report, by name.
        purpose: what the step is for, one sentence or two.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    purpose: str = ""

    def text(self) -> str:
        """The graph as it now is, under the step's purpose; see `text_of`."""
        return f"# {self.purpose}{'' if self.modified else ' Changed nothing.'}\n{text_of(self.model)}"


class Step(ir.passes.InPlacePass):  # type: ignore[misc]
    """One named step of a lowering.

    Args:
        name: lower case, with dashes.
        apply: changes a model in place, given it and `arguments`; one of onnx_ir's own passes too.
        facts: the name under which the report gets what `apply` returns; empty for nothing.
    """

    def __init__(self, name: str, apply: Callable[..., Any], *arguments: Any, facts: str = "") -> None:
        self.name, self._apply, self._arguments, self._facts = name, apply, arguments, facts

    @property
    def purpose(self) -> str:
        """What the step does: the first paragraph of its docstring."""
        made_of = type(self._apply) if isinstance(self._apply, ir.passes.PassBase) else self._apply
        return " ".join((inspect.getdoc(made_of) or "").partition("\n\n")[0].split())

    def call(self, model: ir.Model) -> StepResult:
        """Apply the step in place."""
        return self.apply(model, _state(model))[0]

    def apply(self, model: ir.Model, before: list[Any]) -> tuple[StepResult, list[Any]]:
        """The same, given the model's state, see `_state`; returns the next one, too."""
        found = self._apply(model, *self._arguments)
        after = _state(model)
        return StepResult(model, after != before, {self._facts: found} if self._facts else {}, self.purpose), after


def each_step(model: ir.Model, steps: Sequence[Step]) -> Iterator[tuple[str, StepResult]]:
    """Apply steps one by one, in place, and show the model as it came and after each, before it is checked. Raises M702
    when a step leaves a malformed graph, and what the steps raise."""
    yield EXPORT, StepResult(model, True, purpose="The program in ONNX, operators of moec's dialect as opaque nodes.")
    check_graph(model, EXPORT)
    state = _state(model)
    for step in steps:
        result, state = step.apply(model, state)
        yield step.name, result
        check_graph(model, step.name)


def apply_steps(model: ir.Model, steps: Sequence[Step], progress: Progress | None = None) -> dict[str, Any]:
    """Apply steps in place; returns their facts. Raises as `each_step` does."""
    progress, facts = progress or Progress(), dict[str, Any]()
    for name, result in each_step(model, steps):
        facts |= result.facts
        progress.step(name, result.text)
    return facts


def _state(model: ir.Model) -> list[Any]:
    """Equal before and after a step that changes nothing: nodes, values and tensors by identity, names and types by
    value. Far cheaper than the text."""
    graph, bodies = model.graph, list(model.functions.values())
    found: list[Any] = [*model.opset_imports.items(), model.ir_version, *model.metadata_props.items(), bodies]
    found += [tuple(graph.inputs), tuple(graph.outputs)]
    found += [(name, value, value.const_value, *_type(value)) for name, value in graph.initializers.items()]
    parts: list[ir.Graph | ir.Function] = [graph, *bodies]
    for node in (node for part in parts for node in part.all_nodes()):
        found.append((node, node.graph, node.domain, node.op_type, node.inputs, node.outputs))
        found += [*node.attributes.items(), *map(_type, node.outputs)]
    return found


def _type(value: ir.Value) -> tuple[Any, ...]:
    return value.name, value.dtype, None if value.shape is None else tuple(value.shape)
