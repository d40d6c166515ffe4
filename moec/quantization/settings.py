"""What `quantize` is asked for: settings of each weight by rule, kind and default, and the refusal of what fits
nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from moec.errors import MoecError
from moec.quantization.bit_budget import Budget, ruled_by
from moec.quantization.grid import BITS, GROUPS, INTEGERS, Grid
from moec.recognition.weight_roles import Use
from moec.registry import did_you_mean

KEEP = 16  # the number of bits that leaves a weight as it is
KINDS = ("experts", "attention", "dense", "embeddings", "lm_head")
FINE = ("router", "gate")  # kinds that are never quantized
RECIPE = (*KINDS, "down", "always")  # what a recipe may name
Setting = int | Mapping[str, Any]
OF_A_RULE = ("bits", "group", "method", "symmetric", "format", "positive_scales")  # what a rule's table may hold
_LEAVE = f"leave experts with experts={KEEP}: no group divides it"


@dataclass(frozen=True)
class QuantizeSettings:
    """The options of one `quantize`, see there.

    Attributes:
        default: the grid of what no other option names; its bits may be `KEEP`.
        kinds: bits of each of `KINDS`, None where they are the default's.
        rules: patterns of names to bits, or to tables.
        budget: mean bits of the experts, or None.
        floor: tokens that are to reach every expert.
        text: the pass as it was written, for refusals.
        recipe: bits or tables of `RECIPE`, for what neither a rule nor an option names.
    """

    default: Grid
    kinds: Mapping[str, int | None]
    rules: Mapping[str, Setting] | None
    budget: Budget | None
    floor: int
    text: str
    recipe: Mapping[str, Setting] | None = None

    def check(self) -> None:
        """Raise M203 on settings that are invalid for every model."""
        if self.rules is not None and not isinstance(self.rules, Mapping):
            raise self.refusal(
                f"rules={self.rules!r} is not a table of patterns", 'write for example rules={"*.layers.0.*": 8}'
            )
        if type(self.floor) is not int or self.floor < 0:
            raise self.refusal(
                f"floor={self.floor!r} is not a number of tokens", "0 takes the text that was allowed, and no more"
            )
        unknown = sorted(set(self.recipe or {}) - set(RECIPE))
        if unknown:
            raise self.refusal(f"a recipe has no {unknown[0]!r}", did_you_mean(str(unknown[0]), RECIPE))
        self._check_budget()
        named = *(self.rules or {}).values(), *(self.recipe or {}).values()
        given = [self.default.bits, *self.kinds.values(), *named]
        for setting in (g for g in given if g is not None):
            unknown = sorted(set(setting) - set(OF_A_RULE)) if isinstance(setting, Mapping) else []
            if unknown:
                holds = f"a rule's table may hold {', '.join(OF_A_RULE[:-1])} and {OF_A_RULE[-1]}"
                raise self.refusal(
                    f"a rule has no setting {unknown[0]!r}", did_you_mean(str(unknown[0]), OF_A_RULE, holds)
                )
            grid = self._grid(setting)
            if grid is not None and grid.problem:
                fix = (
                    f"bits are {', '.join(map(str, BITS))}, or {KEEP} to leave weights as they are; groups are "
                    f"{', '.join(map(str, GROUPS))}"
                )
                what = grid.problem
                if what.startswith("bits=") and "is not one of" in what:
                    what += f", or {KEEP}"
                raise self.refusal(what, grid.way_out or fix)

    def _check_budget(self) -> None:
        if self.budget is None:
            return
        what, fix = self.budget.problem
        if what:
            raise self.refusal(what, fix)
        if self.kinds["experts"] is not None:
            raise self.refusal("experts and budget_bits both say how many bits experts have", "leave one of them out")
        ruled = ruled_by(self.recipe)
        if ruled:
            what = f"the recipe's {ruled!r} and budget_bits both say how many bits experts have"
            raise self.refusal(what, "leave one of them out; what every token reads is 'always' in a recipe")
        if self.default.format != INTEGERS:
            raise self.refusal(f"budget_bits shares out integers, not {self.default.format}", "leave one of them out")

    def refusal(self, what: str, fix: str) -> MoecError:
        """The M203 that says so of this pass."""
        return MoecError("M203", what, self.text, fix)

    # ------------------------------------------------------------------ choice
    def choose(self, uses: Sequence[Use]) -> list[Grid | None]:
        """Each use's grid; None where the weight is to stay."""
        mixture = any(u.kind == "experts" for u in uses)
        heads = {u.name: self._own(u, mixture) for u in uses if u.kind == "lm_head"}
        follows = [
            u.kind == "embeddings" and u.name in heads and self.kinds["embeddings"] is None and self.rule(u) is None
            for u in uses
        ]
        shared = {u.name for u, tied in zip(uses, follows, strict=True) if tied}
        return [_by_rows(heads[u.name] if u.name in shared else self._own(u, mixture), u, shared) for u in uses]

    def rule(self, use: Use) -> str | None:
        """The first pattern that fits a name of the weight: its own, with or without its last part, or that of the
        module that reads it."""
        names = {use.name, use.name.rpartition(".")[0], use.module} - {""}
        return next((p for p in self.rules or {} if any(fnmatchcase(n, p) for n in names)), None)

    def _grid(self, setting: Setting) -> Grid | None:
        """The grid that a number of bits or a rule's table stands for; None for none."""
        own: Mapping[str, Any] = setting if isinstance(setting, Mapping) else {"bits": setting}
        grid = replace(self.default, **own)
        return None if type(grid.bits) is int and grid.bits == KEEP else grid.settled()

    def _own(self, use: Use, mixture: bool) -> Grid | None:
        if use.kind in FINE:
            return None
        rule, kind = self.rule(use), self.kinds.get(use.kind)
        if rule is not None:
            return self._grid((self.rules or {})[rule])
        recipe = self.recipe or {}
        part = next((p for p in _parts(use, mixture) if p in recipe), None)
        if kind is None and part is not None:
            return _dividing(self._grid(recipe[part]), use)
        default = {"embeddings": KEEP, "lm_head": max(self.default.bits, 8)}.get(use.kind, self.default.bits)
        return self._grid(default if kind is None else kind)

    # ------------------------------------------------------------------ what was asked for
    def check_asked(self, uses: Sequence[Use], grids: Sequence[Grid | None]) -> None:
        """Raise M203 when a rule or a kind that was named fits nothing, or nothing that can be quantized, and when
        experts cannot."""
        for use, grid in zip(uses, grids, strict=True):
            misfit = "" if grid is None or use.weight is None else grid.misfit(use.weight)
            if misfit and use.kind == "experts":
                fitting = ", ".join(str(g) for g in GROUPS if use.weight is not None and use.weight.shape[-1] % g == 0)
                raise self.refusal(
                    f"{use.name}: {misfit}",
                    f"use group {fitting} for it, or leave experts with experts={KEEP}" if fitting else _LEAVE,
                )
        asked = [(k, [u.kind == k for u in uses]) for k in KINDS if self.kinds[k] is not None]
        asked += [(f"rule {p!r}", [self.rule(u) == p for u in uses]) for p in self.rules or {}]
        for what, fits in asked:
            if not any(fits):
                names = f"; its weights are called like {uses[0].name!r}, in {uses[0].module!r}" if uses else ""
                raise self.refusal(f"{what} fits no weight of this model", f"leave it out{names}")
            self._check_fits(what, [(u, g) for u, g, fit in zip(uses, grids, fits, strict=True) if fit])

    def _check_fits(self, what: str, matched: list[tuple[Use, Grid | None]]) -> None:
        if all(u.kind in FINE for u, _ in matched):
            raise self.refusal(f"{what} fits only {matched[0][0].kind}s, which keep 16 bits or more", "leave it out")
        misfits = [(u.name, g.misfit(u.weight)) for u, g in matched if g is not None and u.weight is not None]
        if misfits and all(reason for _, reason in misfits):
            raise self.refusal(
                f"{what} fits nothing that can be quantized: {': '.join(misfits[0])}", "choose another group"
            )


def _parts(use: Use, mixture: bool) -> tuple[str, ...]:
    """What a recipe calls a weight, the name that decides first."""
    if mixture and use.kind in ("attention", "dense"):
        return "always", use.kind
    return ("down", use.kind) if use.last else (use.kind,)


def _dividing(grid: Grid | None, use: Use) -> Grid | None:
    """The same in groups that divide the rows, where there are such."""
    if grid is None or use.weight is None or grid.format != INTEGERS:
        return grid
    fitting = [g for g in GROUPS if g <= grid.group and use.weight.shape[-1] % g == 0]
    return replace(grid, group=max(fitting)) if fitting else grid


def _by_rows(grid: Grid | None, use: Use, shared: set[str]) -> Grid | None:
    """A table's grid: no product makes up for one row's error, so data are of no use."""
    table = use.kind == "embeddings" or use.name in shared
    return replace(grid, method="hqq") if table and grid is not None and grid.method == "gptq" else grid
