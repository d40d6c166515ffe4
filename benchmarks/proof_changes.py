"""How `proof.py` makes an engine wrong: another config, another model, another program, other weights, or another file.

Each change is the error that a converter would make, made where that converter would make it. The wrong engine is then
built by the same backend as the right one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from proof_cases import Right
from torch import Tensor, fx, nn

import moec
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.weights.lazy import from_tensor

aten, dialect = torch.ops.aten, torch.ops.moec


class Change:
    """Makes the engine folder of a case wrong; returns the wrong one."""

    def make(self, right: Right) -> Path:
        raise NotImplementedError


@dataclass(frozen=True)
class Config(Change):
    """The config was read otherwise: the model with the same weights and these entries."""

    entries: dict[str, Any]

    def make(self, right: Right) -> Path:
        twin = right.case.model_with(**self.entries)
        return right.put(right.lower(right.capture(moec.open_source(twin))))


@dataclass(frozen=True)
class Model(Change):
    """The model was written otherwise: `edit` changes its modules in place."""

    edit: Callable[[Any], object]

    def make(self, right: Right) -> Path:
        twin = right.case.model_with()
        with torch.no_grad():
            self.edit(twin)
        return right.put(right.lower(right.capture(moec.open_source(twin))))


@dataclass(frozen=True)
class Captured(Change):
    """The graph was translated otherwise: `edit` changes the captured program in place."""

    edit: Callable[[Program], object]

    def make(self, right: Right) -> Path:
        program = right.captured
        self.edit(program)
        program.finish()
        return right.put(right.lower(program))


@dataclass(frozen=True)
class Lowered(Change):
    """The passes did something else: `edit` changes the program that the engine is built from."""

    edit: Callable[[Program], object]

    def make(self, right: Right) -> Path:
        program = right.lower(right.captured)
        self.edit(program)
        return right.put(program)


@dataclass(frozen=True)
class File(Change):
    """The exporter wrote something else: `edit` changes the ONNX model."""

    edit: Callable[[Any], object]

    def make(self, right: Right) -> Path:
        import onnx_ir as ir

        shutil.rmtree(right.wrong, ignore_errors=True)
        shutil.copytree(right.engine, right.wrong)
        model = ir.load(right.engine / "model.onnx")
        self.edit(model)
        for file in right.wrong.glob("model.onnx*"):
            file.unlink()
        ir.save(model, right.wrong / "model.onnx", external_data="model.onnx.data")
        right.sign(right.wrong)
        return right.wrong


# ---------------------------------------------------------------------- weights
def weights(
    pattern: str, change: Callable[[Tensor], Tensor], stage: type[Captured] | type[Lowered] = Captured
) -> Change:
    """Weights whose names match, changed."""

    def edit(program: Program) -> None:
        names = [name for name in program.weights if re.search(pattern, name)]
        assert names, f"no weight is called {pattern}: {list(program.weights)}"
        for name in names:
            old = program.weights[name].load()
            new = change(old.clone()).to(old.dtype).contiguous()
            assert new.shape == old.shape and not torch.equal(new, old), name
            program.weights[name] = from_tensor(new, name)

    return stage(edit)


def part(index: Any, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A change of one part of a tensor."""

    def edit(value: Tensor) -> Tensor:
        value[index] = change(value[index].clone())
        return value

    return edit


def zero(value: Tensor) -> Tensor:
    return torch.zeros_like(value)


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value * factor


# ---------------------------------------------------------------------- programs
def rule(**entries: Any) -> Change:
    """Every mixture of the program with other entries in its routing or activation rule."""

    def edit(program: Program) -> None:
        nodes = program.nodes(dialect.moe.default)
        assert nodes and all(node.kwargs.get(k) != v for node in nodes for k, v in entries.items())
        for node in nodes:
            node.kwargs = {**node.kwargs, **entries}

    return Lowered(edit)


def without(operator: Any, index: int) -> Change:
    """Every call of an operator without one of its optional arguments."""

    def edit(program: Program) -> None:
        nodes = program.nodes(operator)
        assert nodes and all(node.args[index] is not None for node in nodes)
        for node in nodes:
            node.update_arg(index, None)

    return Lowered(edit)


def constant(old: float, new: float, operator: Any = None) -> Change:
    """Every number of the graph that is `old`, in calls of one operator or of all, made `new`."""

    def edit(program: Program) -> None:
        nodes = program.nodes(operator) if operator else [n for n in program.graph.nodes if n.op == "call_function"]
        found = 0
        for node in nodes:
            args = tuple(new if type(a) in (int, float) and a == old else a for a in node.args)
            kwargs = {k: new if type(a) in (int, float) and a == old else a for k, a in node.kwargs.items()}
            found += (args, kwargs) != (node.args, node.kwargs)
            node.args, node.kwargs = args, kwargs
        assert found, f"the graph has no {old}"

    return Captured(edit)


def then(program: Program, value: fx.Node, *steps: tuple[Any, ...]) -> fx.Node:
    """Further steps on a value, at the graph's insert point: operators with what follows their first argument."""
    for operator, *rest in steps:
        value = call_like(program, value, "mutant", operator, value, *rest)
    return value


def argument(operator: Any, index: int, *steps: tuple[Any, ...]) -> Change:
    """One argument of every call of an operator, after further steps."""

    def edit(program: Program) -> None:
        nodes = program.nodes(operator)
        assert nodes
        for node in nodes:
            with program.graph.inserting_before(node):
                node.update_arg(index, then(program, node.args[index], *steps))  # type: ignore[arg-type]  # a node

    return Captured(edit)


def routed(change: Callable[[Program, fx.Node, fx.Node], fx.Node], index: int) -> Change:
    """What every mixture gets of its router, changed: `change` maps ids and weights to new ids (1) or weights (2)."""

    def edit(program: Program) -> None:
        nodes = program.nodes(dialect.experts.default)
        assert nodes
        for node in nodes:
            with program.graph.inserting_before(node):
                node.update_arg(index, change(program, node.args[1], node.args[2]))  # type: ignore[arg-type]  # nodes

    return Captured(edit)


def results(operator: Any, *steps: tuple[Any, ...], first: bool = False) -> Change:
    """What every call of an operator says (or the first alone), after further steps."""

    def edit(program: Program) -> None:
        nodes = program.nodes(operator)
        assert nodes
        for node in nodes[: 1 if first else None]:
            users = list(node.users)
            with program.graph.inserting_before(node.next):
                new = then(program, node, *steps)
            for user in users:
                user.replace_input_with(node, new)

    return Captured(edit)


def outputs(change: Callable[[Program, list[fx.Node]], list[fx.Node]]) -> Change:
    """The values that the program gives back, changed; the first is the logits, keys and values follow."""

    def edit(program: Program) -> None:
        end = next(n for n in program.graph.nodes if n.op == "output")
        with program.graph.inserting_before(end):
            end.args = (tuple(change(program, list(end.args[0]))),)

    return Captured(edit)


def capacity(program: Program, ids: fx.Node, shares: fx.Node, limit: int = 8) -> fx.Node:
    """Routing weights `[T, K]` in which an expert's tokens beyond the first `limit` count nothing."""
    experts = program.add_weight("mutant.experts", from_tensor(torch.arange(8), "experts"))
    each = then(program, ids, (aten.unsqueeze.default, -1), (aten.eq.Tensor, program.read_weight(experts)))
    taken = then(program, each, (aten.to.dtype, torch.int64), (aten.sum.dim_IntList, [1]), (aten.cumsum.default, 0))
    kept = then(program, taken, (aten.gather.default, 1, ids), (aten.le.Scalar, limit), (aten.to.dtype, torch.float32))
    return then(program, shares, (aten.mul.Tensor, kept))


def baked(program: Program, ids: fx.Node, _shares: fx.Node) -> fx.Node:
    """Ids that a sample's first token had, for every token."""
    name = program.add_weight("mutant.ids", from_tensor(torch.arange(ids.meta["val"].shape[1]) * 3, "ids"))
    return then(program, ids, (aten.mul.Tensor, 0), (aten.add.Tensor, program.read_weight(name)))


# ---------------------------------------------------------------------- modules
def each_layer(edit: Callable[[Any], object]) -> Model:
    """Every layer of the model changed."""
    return Model(lambda model: [edit(layer) for layer in model.model.layers])


def swapped(one: str, two: str) -> Callable[[Any], object]:
    """A module in which two others have changed places."""

    def edit(module: Any) -> None:
        first, second = getattr(module, one), getattr(module, two)
        setattr(module, one, second)
        setattr(module, two, first)

    return edit


class Centred(nn.Module):
    """LayerNorm where RMSNorm was meant: the mean is taken away."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, None, self.eps)
