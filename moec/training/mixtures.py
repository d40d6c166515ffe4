"""The mixtures of a module, found by their parameters: no class and no name of a library plays a part.

Experts are a module with two parameters or more `[E, ...]` of three dimensions or more and one E. Their router is what
holds a parameter `[E, hidden]` beside them, at most two steps below the module that holds both.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from moec.errors import MoecError
from moec.program.trainable import TrainableProgram

_DEPTH = 2  # `block.router.layer` is the farthest that models have


@dataclass(frozen=True)
class Mixture:
    """One mixture of a module.

    Attributes:
        name: of `experts`. experts: the module that is called with ids and weights. count: E.
        router: the module that holds the router's weight `[E, hidden]`, and its dotted name; None where none is found.
    """

    name: str
    experts: nn.Module
    count: int
    router: nn.Module | None
    router_name: str = ""

    def matrices(self) -> list[Tensor]:
        """The experts' weights, `[E, ...]` each."""
        return [p for p in self.experts.parameters(recurse=False) if p.dim() > 2 and p.shape[0] == self.count]

    def router_parameters(self) -> dict[str, nn.Parameter]:
        """The router's parameters by their names in the model: `[E, hidden]`, and biases `[E]`."""
        own = self.router.named_parameters(recurse=False) if self.router is not None else ()
        return {f"{self.router_name}.{name}": p for name, p in own if p.shape[0] == self.count}


def find_mixtures(model: nn.Module) -> list[Mixture]:
    """All mixtures of a module, in its own order; none for a dense one."""
    modules = dict(model.named_modules())
    return [_mixture(modules, name, count) for name, module in modules.items() if (count := _experts_in(module))]


def router_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all routers of a module, or of a `TrainableProgram`, by name: weights and biases of their
    logits. Correction biases are buffers, see `update_bias`.

    Raises:
        MoecError: M201 where there is no router.
    """
    found = _of_program(model) if isinstance(model, TrainableProgram) else {}
    if not found:
        for mixture in find_mixtures(model):
            found |= mixture.router_parameters()
    if not found:
        raise no_mixture(model, "it has no router that is known")
    return found


def no_mixture(model: nn.Module, what: str) -> MoecError:
    """M201 with a way that works for any model that moec captures."""
    fix = 'capture it, run "find-moe" or "upcycle" on the program, and take program.module(trainable=True)'
    return MoecError("M201", what, type(model).__name__, fix)


def _experts_in(module: nn.Module) -> int:
    """E, where a module holds the weights of experts itself; else 0."""
    sizes = Counter(p.shape[0] for p in module.parameters(recurse=False) if p.dim() > 2)
    count, matrices = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
    return count if matrices > 1 and count > 1 else 0


def _mixture(modules: dict[str, nn.Module], name: str, count: int) -> Mixture:
    parent = name.rpartition(".")[0]
    for other, module in modules.items():
        below = other.removeprefix(f"{parent}.") if parent else other
        outside = other == parent or (other.startswith(f"{parent}.") if parent else True)
        depth = 0 if other == parent else below.count(".") + 1
        apart = other != name and not other.startswith(f"{name}.")
        if outside and depth <= _DEPTH and apart and _routes(module, count):
            return Mixture(name, modules[name], count, module, other)
    return Mixture(name, modules[name], count, None)


def _routes(module: nn.Module, count: int) -> bool:
    return any(p.dim() == 2 and p.shape[0] == count for p in module.parameters(recurse=False))


def _of_program(model: TrainableProgram) -> dict[str, nn.Parameter]:
    return {name: model.get_parameter(name) for name in model.router_weights()}
