"""Mixed precision: a budget of bits, spent on the experts where it saves most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from moec.program.program import Program
from moec.program.provenance import module_path
from moec.quantization.allocation import allocate
from moec.quantization.grid import Grid
from moec.quantization.sensitivity import KINDS, Sensitivity, measure_sensitivity
from moec.recognition.weight_roles import Use
from moec.registry import did_you_mean

WIDTHS = (2, 4, 8)  # what can be stored; three bits take the bytes of four, so that there is nothing to choose
Todo = list[tuple[Use, Grid]]


@dataclass(frozen=True)
class Budget:
    """How many bits the experts may have, and how it is decided which have more.

    Attributes:
        bits: mean width of all numbers in the experts' matrices; scales and zero points come on top, as with any width.
        widths: that an expert may have; one for both its matrices.
        sensitivity: see `measure_sensitivity`.
    """

    bits: float
    widths: Sequence[int] = (2, 4)
    sensitivity: str = "fisher"

    @property
    def problem(self) -> tuple[str, str]:
        """What of it is not possible, and what is; empty when all is well."""
        listed = isinstance(self.widths, (list, tuple))
        if not listed or any(type(w) is not int or w not in WIDTHS for w in self.widths) or len(set(self.widths)) < 2:
            return (
                f"widths={self.widths!r} are not two or more of {', '.join(map(str, WIDTHS))}",
                "write for example widths=[2, 4]",
            )
        if self.sensitivity not in KINDS:
            what = f"sensitivity={self.sensitivity!r} is not one of {', '.join(KINDS)}"
            return what, did_you_mean(str(self.sensitivity), list(KINDS), "fisher is the best known")
        known = isinstance(self.bits, (int, float)) and not isinstance(self.bits, bool)
        if not known or not min(self.widths) <= self.bits <= max(self.widths):
            what = f"budget_bits={self.bits!r} is not between the widths {', '.join(map(str, sorted(self.widths)))}"
            return what, f"choose a mean from {min(self.widths)} to {max(self.widths)} bits, or other widths"
        return "", ""

    def spend(
        self, program: Program, inputs: Iterable[Mapping[str, Tensor]], todo: Todo
    ) -> tuple[Todo, dict[str, Any]]:
        """Give every expert its width.

        Args:
            inputs: to measure on.
            todo: matrices and their grids; those of blocks whose two matrices are both in it take part.

        Returns:
            The same with the grids of whole blocks mixed, and what was decided, for the report.
        """
        blocks = {node: pair for node, pair in _pairs(todo).items() if len(pair) == 2}
        widths = sorted(set(self.widths))
        found = measure_sensitivity(
            program, inputs, {node: pair[0][1] for node, pair in blocks.items()}, widths, self.sensitivity
        )
        numbers = {
            node: [sum(math.prod(u.weight.shape[1:]) for u, _ in pair if u.weight is not None)] * len(found.costs[node])
            for node, pair in blocks.items()
        }
        costs = torch.cat([found.costs[node] for node in blocks])
        chosen = iter(allocate(costs, [n for node in blocks for n in numbers[node]], widths, self.bits))
        mixed = {node: tuple(next(chosen) for _ in numbers[node]) for node in blocks}
        done = [(use, _grid(grid, mixed.get(use.node, ()))) for use, grid in todo]
        return done, self._facts(found, mixed, numbers)

    def _facts(
        self, found: Sensitivity, mixed: dict[fx.Node, tuple[int, ...]], numbers: dict[fx.Node, list[int]]
    ) -> dict[str, Any]:
        pairs = [(b, n) for node, bits in mixed.items() for b, n in zip(bits, numbers[node], strict=True)]
        facts: dict[str, Any] = {
            "budget_bits": self.bits,
            "mean_bits": sum(b * n for b, n in pairs) / sum(n for _, n in pairs),
        }
        facts |= {
            "sensitivity": found.kind,
            "experts": {str(b): count for b, count in sorted(Counter(b for b, _ in pairs).items())},
        }
        if found.reason:
            facts |= {"asked": self.sensitivity, "reason": found.reason}
        return {
            **facts,
            "blocks": [{"module": module_path(node) or node.name, "bits": list(bits)} for node, bits in mixed.items()],
        }


def ruled_by(recipe: object) -> str:
    """The part of a recipe that says how many bits experts have, which is a budget's to say; empty without one."""
    return next((part for part in ("experts", "down") if isinstance(recipe, Mapping) and part in recipe), "")


def without_data(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `quantize` that needs no text, takes no time, and makes weights of the same grids; experts of a
    budget get its narrowest width. Options that are not possible stay, for the pass to refuse them."""
    found, rules = {**options, "method": _plain(options["method"])}, options["rules"]
    if isinstance(rules, Mapping):
        found["rules"] = {
            p: {**r, "method": _plain(r["method"])} if isinstance(r, Mapping) and "method" in r else r
            for p, r in rules.items()
        }
    budget = options["budget_bits"]
    if (
        budget is not None
        and options["experts"] is None
        and not ruled_by(options.get("recipe"))
        and not Budget(budget, options["widths"], options["sensitivity"]).problem[0]
    ):
        found |= {"budget_bits": None, "experts": min(options["widths"])}
    return found


def _plain(method: Any) -> Any:
    return "rtn" if method in ("gptq", "hqq") else method


def _numbers(use: Use) -> int:
    """In one expert's matrix."""
    assert use.weight is not None
    return math.prod(use.weight.shape[1:])


def _pairs(todo: Todo) -> dict[fx.Node, Todo]:
    found: dict[fx.Node, Todo] = {}
    for use, grid in todo:
        if use.kind == "experts":
            found.setdefault(use.node, []).append((use, grid))
    return found


def _grid(grid: Grid, bits: tuple[int, ...]) -> Grid:
    """A grid with these widths: a plain one where all are the same."""
    if len(set(bits)) > 1:
        return replace(grid, widths=bits)
    return replace(grid, bits=bits[0]) if bits else grid
