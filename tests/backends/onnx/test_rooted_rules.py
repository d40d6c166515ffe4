"""Rules that are tried only where they can match: the graph is the same to the last attribute, after fewer tries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import onnx_ir as ir
import pytest
from onnxscript.rewriter import pattern
from onnxscript.rewriter._matcher import SimplePatternMatcher

from moec.backends.onnx import folding, rooted_rules
from moec.backends.onnx.export import strip_traces
from moec.backends.onnx.rooted_rules import RootedRule, rooted
from moec.backends.onnxruntime.lowering import lowered
from moec.backends.onnxruntime.optimization import fusions, rotary
from moec.targets.target import Target
from tests import zoo
from tests.backends.onnx.graphs import product


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each match that onnxscript begins."""
    begun, real = list[int](), SimplePatternMatcher.match
    monkeypatch.setattr(SimplePatternMatcher, "match", lambda *a, **k: begun.append(0) or real(*a, **k))
    return begun


def optimized(name: str) -> list[str]:
    for module in (fusions, rotary):
        module._rules.cache_clear()
    model, _ = lowered(zoo.captured(name), Target.parse("onnxruntime"))
    strip_traces(model)
    tensors = {n: v.const_value for n, v in model.graph.initializers.items() if v.const_value is not None}
    values = [str((n, t.dtype, t.shape, t.numpy().tolist())) for n, t in tensors.items()]
    parts = [*model.graph.inputs, *model.graph.outputs, *model.graph, model.opset_imports]
    return [re.sub(r" at 0x\w+", "", str(part)) for part in parts] + values


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_the_graph_is_the_same(name: str, tries: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found, few = optimized(name), len(tries)
    for module in (folding, fusions, rotary):
        monkeypatch.setattr(module, "rooted", tuple)
    assert optimized(name) == found
    assert few < (len(tries) - few) / 8
    for module in (fusions, rotary):
        module._rules.cache_clear()


def rule(before: Callable[..., Any], after: Callable[..., Any]) -> pattern.RewriteRule:
    return pattern.RewriteRule(before, after)


def two_ends(op: Any, x: Any, w: Any) -> Any:
    h = op.MatMul(x, w)
    return h, op.Relu(h)


RULES: dict[str, Callable[[], pattern.RewriteRule]] = {
    "an operator": lambda: rule(lambda op, h: op.Relu(h), lambda op, h: op.Abs(h)),
    "operators with a prefix": lambda: rule(lambda op, h: pattern.torch_module_op.Re(h), lambda op, h: op.Abs(h)),
    "two ends": lambda: rule(two_ends, lambda op, x, w: (op.Abs(x), op.Neg(x))),
}


def applied(rules: Iterable[Any]) -> list[str]:
    model = product()
    pattern.RewriteRuleSet(list(rules)).apply_to_model(model)
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_what_it_did(name: str) -> None:
    assert applied(rooted([RULES[name]()])) == applied([RULES[name]()])


def test_a_rule_that_asks_for_another_operator_is_never_applied() -> None:
    one = RULES["an operator"]()
    other = rule(lambda op, h: op.Sigmoid(h), lambda op, h: op.Abs(h))
    assert applied([one]) == ["MatMul", "Abs"]
    assert applied([RootedRule(one, other._matcher.pattern.output_nodes[0].op)]) == ["MatMul", "Relu"]  # type: ignore[attr-defined]


def test_a_rule_with_a_matcher_of_its_own_stays_as_it_is() -> None:
    class Own(SimplePatternMatcher):
        def match(self, model: Any, graph_or_function: Any, node: ir.Node, **options: Any) -> Any:
            raise AssertionError("it is asked")

    before: Any = RULES["an operator"]()
    own = pattern.RewriteRule(before._target_pattern, lambda op, h: op.Abs(h), matcher=Own)
    assert rooted([own]) == (own,)
    with pytest.raises(AssertionError, match="it is asked"):
        applied(rooted([own]))
    assert isinstance(rooted_rules.rooted([before])[0], RootedRule)
