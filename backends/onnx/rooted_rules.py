"""onnxscript's rewrite rules, tried only at nodes where their pattern can end.

A rule set of onnxscript tries each rule at each node. A try prepares a match, and for a pattern with two ends it sorts
all nodes of the graph by operator, before it asks whether the node has the operator at the pattern's end. It seldom
has: of 38,562 tries in a Mixtral of two layers 37,366 end there. Here that question comes first, so what the rules do
is the same, and a rule with two ends takes no time that grows with the square of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def rooted(rules: Iterable[Any]) -> tuple[Any, ...]:
    """These rules (onnxscript's `RewriteRule`), each tried only where its pattern can end; one whose end is not known,
    of another version of onnxscript or with a matcher of its own, stays as it is."""
    return tuple(_rooted(rule) for rule in rules)


def _rooted(rule: Any) -> Any:
    from onnxscript.rewriter.pattern import SimplePatternMatcher

    matcher = getattr(rule, "_matcher", None)
    if type(matcher) is not SimplePatternMatcher:  # another one may begin elsewhere
        return rule
    ends = getattr(getattr(matcher, "pattern", None), "output_nodes", None) or [None]
    operator = getattr(ends[0], "op", None)  # it is asked about the node before all others
    return rule if operator is None else RootedRule(rule, operator)


class RootedRule:
    """A rule as onnxscript's rule sets use one: all is the rule's own, but that `try_rewrite` asks first.

    Args:
        rule: a `RewriteRule`. operator: the pattern of the operator at its end, which `matches` an operator's name.
    """

    def __init__(self, rule: Any, operator: Any) -> None:
        self._rule, self._operator = rule, operator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: Any, graph_or_function: Any, node: Any, **options: Any) -> Any:
        """What the rule would put in this node's place; None where it does not match."""
        if not self._operator.matches(node.op_type):
            return None
        return self._rule.try_rewrite(model, graph_or_function, node, **options)
