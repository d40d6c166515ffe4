"""What stands at each place inside a program, or inside a module, for given inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from moec.dialect import Routing, route_reference
from moec.execution.streaming import StreamingInterpreter, router_logits
from moec.program.decoder_signature import is_present
from moec.program.program import Program
from moec.program.signature import converted
from moec.weights.lazy import Weight

EXPERTS, MOE, ROUTE = torch.ops.moec.experts.default, torch.ops.moec.moe.default, torch.ops.moec.route.default
Watch = Callable[[fx.Node, Any, tuple[Any, ...], dict[str, Any]], None]


class Tracer(StreamingInterpreter):
    """Runs a program and shows `watch(node, value, args, kwargs)` each operator's result and what it was computed from."""

    def __init__(self, program: Program, watch: Watch) -> None:
        super().__init__(program)
        self._watch, self._current = watch, None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function":
            self._watch(n, value, *self.fetch_args_kwargs_from_env(n))
        return value


def trace(program: Program, inputs: Mapping[str, Tensor], watch: Watch) -> None:
    """Run a program once and show every operator's result to `watch`; weights are read one at a time."""
    given = converted(program.inputs, inputs)
    with torch.inference_mode():
        Tracer(program, watch).run(*(given[i.name] for i in program.inputs), enable_io_processing=False)


def cached_values(program: Program) -> set[str]:
    """Names of the nodes whose values go into the cache: keys and values say nothing of a module's own output."""
    results = next(n for n in program.graph.nodes if n.op == "output").args[0]
    return {node.name for name, node in zip(program.outputs, results, strict=True) if is_present(name)}


def moe_nodes(program: Program) -> list[fx.Node]:
    """The program's mixture-of-experts operators, in graph order."""
    return program.nodes(EXPERTS, MOE)


def choice(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """What a MoE operator chose: weights `[T, K]`, ids `[T, K]` and the number of experts."""
    if node.target is EXPERTS:
        ids, weights, count = args[1], args[2], args[3].shape[0]
    else:
        bias = args[3].load() if isinstance(args[3], Weight) else args[3]
        weights, ids = route_reference(router_logits(args[0], args[1], args[2]), bias, Routing.of(kwargs))
        count = args[4].shape[0]
    return weights.reshape(-1, ids.shape[-1]), ids.reshape(-1, ids.shape[-1]), count


def chosen(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The experts that a MoE operator gives each token to, bool `[T, E]`; one with a weight of 0 is none."""
    weights, ids, count = choice(node, args, kwargs)
    return torch.zeros(len(ids), count).scatter_add(-1, ids, weights.ne(0).float()) > 0


def logits_of(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None, Routing] | None:
    """The router's logits `[..., E]`, correction bias and rule, where a node routes; None for any other node."""
    if node.target is ROUTE:
        logits, bias = args[0], args[1] if len(args) > 1 else kwargs.get("bias")
    elif node.target is MOE:
        logits, bias = router_logits(args[0], args[1], args[2]), args[3]
    else:
        return None
    return logits, bias.load() if isinstance(bias, Weight) else bias, Routing.of(kwargs)


def module_path(node: fx.Node) -> str:
    """The dotted name of the innermost module that a node came from, empty when that is not known."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def module_paths(node: fx.Node) -> list[str]:
    """The dotted names of all modules around a node, outermost first."""
    return [str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]


def trace_module(module: nn.Module, run: Callable[[], Any]) -> dict[str, list[Tensor]]:
    """The floating-point outputs of each submodule while `run()` runs it, by dotted name, in the order of their last calls' ends."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            values = [v.detach() for v in tree_leaves(output) if isinstance(v, Tensor) and v.is_floating_point()]
            found.pop(name, None)
            found[name] = values

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in module.named_modules() if name]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
