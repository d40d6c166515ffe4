"""The mixtures of a module, found by their parameters: no class and no name of a library plays a part.

Experts are a module with two parameters or more `[E, ...]` of three dimensions or more and one E. Their router is what
holds a parameter `[E, hidden]` beside them, at most two steps below the module that holds both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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
        return {joined(self.router_name, name): p for name, p in own if p.dim() and p.shape[0] == self.count}


def find_mixtures(model: nn.Module, outside: Iterable[str] = ()) -> list[Mixture]:
    """All mixtures of a module, in its own order, but those at or below the paths `outside`; none for a dense one."""
    modules, without = dict(model.named_modules()), tuple(outside)
    counts = {name: _experts_in(m) for name, m in modules.items() if not any(_is_within(name, p) for p in without)}
    return [_mixture(modules, name, count) for name, count in counts.items() if count]


def programs_in(model: nn.Module) -> dict[str, TrainableProgram]:
    """The programs that a module is or holds, by their dotted paths in it: nothing for the module itself."""
    return {path: m for path, m in model.named_modules() if isinstance(m, TrainableProgram)}


def joined(path: str, name: str) -> str:
    """A name below a path, which is nothing for the module itself."""
    return f"{path}.{name}" if path else name


def router_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all routers of a module, of a `TrainableProgram`, or of what holds one, by name: weights and
    biases of their logits. Correction biases are buffers, see `update_bias`.

    Raises:
        MoecError: M201 where there is no router.
    """
    programs = {path: p for path, p in programs_in(model).items() if p.router_weights()}
    names = [joined(path, name) for path, program in programs.items() for name in program.router_weights()]
    found = {name: model.get_parameter(name) for name in names}
    for mixture in find_mixtures(model, programs):
        found |= mixture.router_parameters()
    if not found:
        raise no_mixture(model, "it has no router that is known")
    return found


def no_mixture(model: nn.Module, what: str) -> MoecError:
    """M201 with a way that works for any model that moec captures."""
    fix = 'capture it, run "find-moe" or "upcycle" on the program, and take program.module(trainable=True)'
    return MoecError("M201", what, type(model).__name__, fix)


def _is_within(name: str, path: str) -> bool:
    return name == path or name.startswith(joined(path, ""))


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
    """Whether a module, which holds no experts, holds a router's weight."""
    return not _experts_in(module) and any(
        p.dim() == 2 and p.shape[0] == count for p in module.parameters(recurse=False)
    )
