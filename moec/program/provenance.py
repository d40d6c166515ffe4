"""Where in the model a node came from."""

from __future__ import annotations

from torch import fx


def module_path(node: fx.Node) -> str:
    """The dotted name of the innermost module that a node came from, empty when that is not known."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def module_paths(node: fx.Node) -> list[str]:
    """The dotted names of all modules around a node, outermost first."""
    return [str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]
