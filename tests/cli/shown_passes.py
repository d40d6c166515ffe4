"""Examples of passes, made by planning each on a tiny program: what `moec explain PASS` shows.

`python -m tests.cli.shown_passes` writes them into `moec/cli/shown/` again.
"""

from __future__ import annotations

import difflib
import operator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from moec import registry
from moec.cli.explain import SHOWN
from moec.frontend.module_source import ModuleSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program

WIDTH, WORDS = 16, 32
# pass -> the tiny model, and the pipeline whose last pass is meant
CASES = {
    "upcycle": ("dense", "upcycle(experts=4, top_k=2)"),
    "carve": ("dense", "carve(experts=4, active=2)"),
    "quantize": ("dense", "quantize(bits=4, group=16)"),
    "merge": ("dense", "merge(['code/', 'law/'])"),
    "find-moe": ("mixture", "find-moe"),
    "fuse-moe": ("mixture", "find-moe, fuse-moe"),
    "prune-experts": ("mixture", "prune-experts(keep=0.5)"),
    "set-top-k": ("mixture", "set-top-k(1)"),
    "skip-experts": ("mixture", "skip-experts(alpha=0.3)"),
    "add-expert": ("mixture", "add-expert('med/')"),
    "calibrate-router": ("mixture", "find-moe, quantize(bits=4, group=16), calibrate-router"),
}


class Dense(nn.Module):
    """A gated feed-forward network behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 32, bias=False), nn.Linear(WIDTH, 32, bias=False)
        self.down = nn.Linear(32, WIDTH, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return x + self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """Two of four experts for each token, by a loop over the experts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.router = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH)) for _ in "1234"
        )

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids)
        x = h.reshape(-1, WIDTH)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mixed = mixed + (weights * (chosen == number)).sum(-1, keepdim=True) * expert(x)
        return h + mixed.view(h.shape)


@cache
def captured(model: str) -> Program:
    module = {"dense": Dense, "mixture": Mixture}[model]()
    return ModuleSource(module, {"ids": torch.arange(6).reshape(2, 3)}).capture()


def listed(program: Program) -> list[str]:
    """A line for each operator: what it makes of what, weights with their shapes; defaults are left out."""
    return [f"{node.name} = {_call(program, node)}" for node in program.graph.nodes if _is_line(node)]


def _is_line(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is not operator.getitem


def _call(program: Program, node: fx.Node) -> str:
    target: Any = node.target
    if not hasattr(target, "_schema"):  # arithmetic on sizes
        return f"{target.__name__}({', '.join(_value(program, v) for v in node.args)})"
    declared = {argument.name: argument for argument in target._schema.arguments}
    given = dict(zip(declared, node.args, strict=False)) | dict(node.kwargs)
    said = {k: v for k, v in given.items() if not declared[k].has_default_value() or v != declared[k].default_value}
    texts = [
        _value(program, v) if isinstance(v, fx.Node | list | tuple) else f"{k}={v}"
        for k, v in said.items()
        if v is not None
    ]
    return f"{target.namespace}.{target._opname}({', '.join(texts)})"


def _value(program: Program, value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(program, each) for each in value)}]"
    if isinstance(value, fx.Node) and value.target is operator.getitem:
        return f"{_value(program, value.args[0])}[{value.args[1]}]"
    if isinstance(value, fx.Node) and value.op == "get_attr":
        weight = program.weights[str(value.target)]
        kind = "" if weight.dtype == torch.float32 else f" {str(weight.dtype).removeprefix('torch.')}"
        return f"{value.target}{kind}{list(weight.shape)}"
    return str(value)


def example(name: str) -> str:
    """What a pass changes in a tiny program, as `diff` writes it."""
    model, text = CASES[name]
    plans = Pipeline.parse(text).plan(captured(model))
    before, after = [listed(p) for p in (captured(model), *(plan.program for plan in plans))][-2:]
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    lines = changed or ["# every operator stays; what changes is the numbers in the weights"]
    return "\n".join([plans[-1].name, "", *_cut(lines, "-"), *_cut(lines, "+"), *_cut(lines, "#")]) + "\n"


def _cut(lines: list[str], sign: str, most: int = 12) -> list[str]:
    """The first lines with a sign, and how many there are more."""
    own = [line for line in lines if line[0] == sign]
    return own if len(own) <= most else [*own[: most - 2], f"{sign} … {len(own) - most + 1} more", own[-1]]


if __name__ == "__main__":
    for each in registry.names("passes"):
        Path(SHOWN, f"{each}.txt").write_text(example(each), encoding="utf-8")
