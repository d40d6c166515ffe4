"""Thousands of random blocks on moec's kernels for CPUs: is each, on every instruction set of this processor, what
float64 gives?

usage: python benchmarks/cpu_kernels_fuzz.py [--cases 10000] [--first 0] [--json]

A case is drawn from its number: sizes from 1 on, experts, choices a token (repeated ones too), one expert for all
tokens or most experts empty, weights of zero and below, every activation with its numbers, biases, the format of each
of the two matrices (bfloat16 for both or none), tokens scaled up and down, in bfloat16 down to where numbers are
flushed to zero. Wrong are: an error above `LIMIT`, instruction sets that differ in a
bit, tokens that differ in a bit when they come in another order. Exit status 1 when there is any. `sharp` counts the
cases whose limit would have seen a result that is off by 0.1 %. The library is that of the installation (`make
kernels`).
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
from reporting import add_output, environment, lines_of, rows_of_one, show
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from moec.dialect import ACTIVATIONS, Activation
from moec.kernels.cpu.library import require_library
from moec.kernels.cpu.structures import open_library
from tests.kernels.cpu.calls import Mixture, Stack, here, run
from tests.kernels.cpu.exact import expected

LIMIT = 3e-7  # of `expected`'s magnitude, behind its slack; a step of float32 is 1.2e-7


def activation(draw: random.Random) -> Activation:
    gated = draw.random() < 0.75
    kind = draw.choice(("plain", "limit", "after", "cap")) if gated else "plain"
    name = "silu" if kind == "cap" else draw.choice(list(ACTIVATIONS))
    alpha = draw.choice((1.0, 1.702)) if name == "silu" else 1.0
    beta = draw.choice((0.0, 1.0)) if gated else 0.0
    if kind == "cap":
        return Activation(name, gated, alpha, beta, cap=draw.choice((0.5, 3.0)), up_cap=draw.choice((0.0, 0.7)))
    return Activation(name, gated, alpha, beta, 0.0 if kind == "plain" else draw.choice((0.3, 7.0)), kind == "after")


def stack(draw: random.Random, shape: tuple[int, int, int], biased: bool, half: bool) -> Stack:
    """Matrices in bfloat16, or in a random format that their width allows."""
    weight, bias = torch.randn(shape) / shape[2] ** 0.5, torch.randn(shape[:2]) if biased else None
    bits = 16 if half else draw.choice([32, *(b for b in (8, 4, 2) if shape[2] % (128 // b) == 0)])
    if bits <= 8:
        groups = [g for g in range(128 // bits, shape[2] + 1, 128 // bits) if shape[2] % g == 0]
        return Stack.packed(weight, bits, draw.choice(groups), draw.random() < 0.5, bias)
    if bits == 16:
        return Stack(weight.bfloat16(), shape[2], bias=None if bias is None else bias.bfloat16(), bits=16)
    return Stack(weight, shape[2], bias=bias)


def case(number: int) -> tuple[Mixture, Tensor, Tensor, Tensor]:
    """Experts, tokens, ids and weights."""
    draw = random.Random(number)
    torch.manual_seed(number)
    rule, experts = activation(draw), draw.choice((1, 2, 5, 17))
    width = lambda: draw.choice((draw.randint(1, 70), 16 * draw.randint(1, 12), 64, 128))  # noqa: E731
    hidden, inner = width(), width()
    tokens, top_k = draw.choice((1, 2, 3, 4, 7, 19, 60, 130)), draw.randint(1, min(experts, 4))
    ids = torch.randint(0, draw.choice((1, experts)), (tokens, top_k))
    weights = torch.randn(tokens, top_k) * draw.choice((0.0, 0.3, 1.0))
    weights[torch.rand(weights.shape) < draw.choice((0.0, 0.4))] = 0
    half = draw.random() < 0.4
    first = stack(draw, (experts, rule.rows_per_neuron * inner, hidden), draw.random() < 0.5, half)
    second = stack(draw, (experts, hidden, inner), draw.random() < 0.5, half)
    block = Mixture(first, second, rule, draw.random() < 0.2, draw.random() < 0.3)
    scale = draw.choice((1e-3, 1.0, 30.0, *((1e-37,) if half else ())))
    return block, torch.randn(tokens, hidden) * scale, ids, weights


def tried(number: int, library: object, isas: list[str]) -> tuple[list[str], float, bool]:
    """What is wrong with a case, its error, and whether the limit would have seen a result that is off by 0.1 %."""
    block, x, ids, weights = case(number)
    found = [run(library, block, x, ids, weights, isa=isa) for isa in isas]  # type: ignore[arg-type]
    want, size, slack = expected(block, x, ids, weights)
    size = size.clamp(min=1e-30)
    error = float((((found[0].double() - want).abs() - slack).amax(1) / size).max())
    order = torch.randperm(len(x))
    moved = run(library, block, x[order], ids[order], weights[order])  # type: ignore[arg-type]
    why = [f"error {error:.1e}"] if not error < LIMIT else []
    why += [f"{isa} differs" for isa, other in zip(isas, found, strict=True) if not torch.equal(other, found[0])]
    why += ["order counts"] if not torch.equal(moved, found[0][order]) else []
    return why, error, bool((1e-3 * want.abs().amax(1) / size).max() > LIMIT)


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first number")
    add_output(parser)
    asked = parser.parse_args()
    library = open_library(require_library("cpu_kernels_fuzz"))
    isas, worst, sharp, bad = here(library), 0.0, 0, {}
    torch.set_num_threads(1)
    for number in range(asked.first, asked.first + asked.cases):
        why, error, seen = tried(number, library, isas)
        worst, sharp = max(worst, error), sharp + seen
        if why:
            bad[number] = why
            print(f"case {number}: {', '.join(why)}", file=sys.stderr, flush=True)
    figures = {"cases": asked.cases, "largest error": worst, "sharp": sharp, "wrong": len(bad)}
    rows = rows_of_one(", ".join(isas), {name: (value, "") for name, value in figures.items()})
    show({**environment(), "wrong": bad, "rows": rows}, lines_of(rows), asked)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
