"""Steps say truly whether they changed something, are shown and checked one by one, and hand over their facts."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from moec.backends.onnx.steps import EXPORT, Step, apply_steps, each_step
from moec.backends.onnx.tensors import WeightTensor
from moec.errors import MoecError
from moec.progress import Progress
from moec.weights.lazy import from_tensor
from tests.backends.onnx.graphs import W, add, product


def rename(model: ir.Model, op: str) -> list[str]:
    """Let the last node be another operator.

    Returns its name.
    """
    model.graph[-1].op_type = op
    return [str(model.graph[-1].name)]


def scale(model: ir.Model) -> None:
    """Double a weight, which no text shows."""
    model.graph.initializers["w"].const_value = WeightTensor(from_tensor(2 * W, "w"), "w")


def rest(model: ir.Model) -> None:
    """Do nothing."""


def forget(model: ir.Model) -> None:
    """Take away what a node reads."""
    del model.graph.initializers["w"]


class Watcher(Progress):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def step(self, name: str, text: Callable[[], str]) -> None:
        self.seen[name] = text()


def test_a_step_says_whether_it_changed_the_graph() -> None:
    steps = [Step("rest", rest), Step("rename", rename, "Neg"), Step("scale", scale), Step("same", rename, "Neg")]
    found = [(name, result.modified) for name, result in each_step(product(), steps)]
    assert found == [(EXPORT, True), ("rest", False), ("rename", True), ("scale", True), ("same", False)]


def test_facts_and_texts_come_from_the_steps() -> None:
    watcher = Watcher()
    steps = [Step("rename", rename, "Neg", facts="renamed"), Step("again", rename, "Abs")]
    assert apply_steps(product(), steps, watcher) == {"renamed": ["node_y"]}
    assert list(watcher.seen) == [EXPORT, "rename", "again"]
    assert watcher.seen["again"].startswith("# Let the last node be another operator.\nopset ai.onnx 20\n")
    assert [text.splitlines()[-1] for text in watcher.seen.values()] == [
        f"y: FLOAT[rows, 4] = {op}(h)" for op in ("Relu", "Neg", "Abs")
    ]


def test_a_text_says_when_a_step_changed_nothing() -> None:
    watcher = Watcher()
    apply_steps(product(), [Step("rest", rest)], watcher)
    assert watcher.seen["rest"].startswith("# Do nothing. Changed nothing.\n")


def test_a_malformed_graph_is_blamed_on_its_step() -> None:
    with pytest.raises(MoecError) as caught:
        apply_steps(product(), [Step("rest", rest), Step("forget", forget), Step("rename", rename, "Neg")])
    assert (caught.value.code, caught.value.where) == ("M702", "after forget")
    wrong = product()
    forget(wrong)
    with pytest.raises(MoecError, match="nothing before it computes") as caught:
        apply_steps(wrong, [])
    assert caught.value.where == f"after {EXPORT}"


def test_passes_of_onnx_ir_are_steps_too() -> None:
    model = product()
    add(model.graph, "Neg", [model.graph.inputs[0]], "unread")
    step = Step("remove-unused-nodes", RemoveUnusedNodesPass())
    assert isinstance(step, ir.passes.PassBase) and step(model).modified and not step(model).modified
    assert [n.op_type for n in model.graph] == ["MatMul", "Relu"]


def test_a_purpose_is_the_docstrings_first_paragraph() -> None:
    assert Step("rename", rename, "Neg").purpose == "Let the last node be another operator."
    assert "unused nodes" in Step("remove", RemoveUnusedNodesPass()).purpose
