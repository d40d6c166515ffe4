"""What stands at each place inside a program, or inside a module, for given inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from moec.execution.streaming import StreamingInterpreter
from moec.program.decoder_signature import is_present
from moec.program.program import Program
from moec.program.signature import converted

Watch = Callable[[fx.Node, Any, tuple[Any, ...], dict[str, Any]], None]


class Tracer(StreamingInterpreter):
    """Runs a program and shows `watch(node, value, args, kwargs)` each operator's result and what it was computed
    from."""

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


def trace_module(module: nn.Module, run: Callable[[], Any]) -> dict[str, list[Tensor]]:
    """The floating-point outputs of each submodule while `run()` runs it, by dotted name, in the order of their last
    calls' ends."""
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
