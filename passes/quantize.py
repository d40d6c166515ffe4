"""`quantize`: weights become integers of 2, 4 or 8 bits with a scale a group; routers and gates never do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import fx

from moec.errors import MoecError
from moec.pipeline import Context, Contract, Pass
from moec.program import Program
from moec.quantization import BITS, GROUPS, Grid, quantize_weight
from moec.rewriting import call_like
from moec.roles import PACKED, Use, weight_uses
from moec.weights import Weight

aten, ops = torch.ops.aten, torch.ops.moec
KEEP = 16  # the number of bits that leaves a weight as it is
_KINDS = ("experts", "attention", "dense", "embeddings", "lm_head")
_FINE = ("router", "gate")


@dataclass(frozen=True)
class Quantize(Pass):
    """Replace weights by `moec::dequantize(packed, scale, zero)`; nothing else in the graph changes, and no data is needed.

    Matrices are told apart by structure: `experts`, `attention` (its projections), `dense` (all other linear layers), `embeddings` and
    `lm_head`. Routers, gates of shared experts, norms and biases stay as they are, whatever is asked: a router of 4 bits sends one
    token in seven to other experts, for a thousandth of the bytes. A table that is embedding and head at once stays one: it is packed
    once when the head is quantized, unless `embeddings` or a rule wants the two apart.

    Packed weights are constants: gradients reach the scales, never the integers.

    Attributes:
        bits: 2, 4 or 8, of everything that no other option names; 16 leaves it as it is.
        group: neighbours along a row that share a scale: 16, 32, 64 or 128. A weight whose rows it does not divide is left and reported;
            with experts that is an error, they being what there is to save.
        method: `rtn` (round to nearest) or `hqq` (scales refined by half-quadratic splitting; slower, never further off).
        symmetric: no zero points. This grid is the one that every target has.
        experts, attention, dense, embeddings, lm_head: bits of one kind. By default as `bits`, but the head has at least 8 (its error
            goes straight into the logits) and embeddings stay, being read a row a token.
        rules: patterns of weights' or modules' names to bits, or to tables of `bits`, `group`, `method` and `symmetric`; the first that
            fits decides, before the options of the kinds: `rules={"*.layers.0.*": 8, "*.down_proj": {"bits": 4, "group": 32}}`.
    """

    contract: ClassVar[Contract] = "approximate"

    bits: int = 4
    group: int = 64
    method: str = "rtn"
    symmetric: bool = True
    experts: int | None = None
    attention: int | None = None
    dense: int | None = None
    embeddings: int | None = None
    lm_head: int | None = None
    rules: Mapping[str, int | Mapping[str, Any]] | None = None

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of places where a weight was replaced. Raises M203 on settings that are none, or that fit no weight."""
        self._check()
        uses = weight_uses(program)
        grids = self._choose(uses)
        self._check_asked(uses, grids)
        before = _size_bytes(program)
        done = self._rewrite(program, context, [(u, g) for u, g in zip(uses, grids, strict=True) if g is not None and u.weight is not None])
        program.graph.eliminate_dead_code()
        program.drop_unused_weights()
        context.facts.update(_facts(program, uses, done, before))
        return len(done)

    # ------------------------------------------------------------------ settings
    def _refuse(self, what: str, fix: str) -> MoecError:
        return MoecError("M203", what, str(self), fix)

    def _check(self) -> None:
        if self.rules is not None and not isinstance(self.rules, Mapping):
            raise self._refuse(f"rules={self.rules!r} is not a table of patterns", 'write for example rules={"*.layers.0.*": 8}')
        given = [self.bits, *(getattr(self, k) for k in _KINDS), *(self.rules or {}).values()]
        for setting in (g for g in given if g is not None):
            unknown = sorted(set(setting) - {"bits", "group", "method", "symmetric"}) if isinstance(setting, Mapping) else []
            if unknown:
                raise self._refuse(f"a rule has no setting {unknown[0]!r}", "a rule's table may hold bits, group, method and symmetric")
            grid = self._grid(setting)
            if grid is not None and grid.problem:
                fix = f"bits are {', '.join(map(str, BITS))}, or {KEEP} to leave weights as they are; groups are {', '.join(map(str, GROUPS))}"
                raise self._refuse(grid.problem, fix)

    def _grid(self, setting: int | Mapping[str, Any]) -> Grid | None:
        """The grid that a number of bits or a rule's table stands for; None for none."""
        own: Mapping[str, Any] = setting if isinstance(setting, Mapping) else {"bits": setting}
        grid = replace(Grid(self.bits, self.group, self.symmetric, self.method), **own)
        return None if type(grid.bits) is int and grid.bits == KEEP else grid

    def _choose(self, uses: list[Use]) -> list[Grid | None]:
        """Each use's grid; None where the weight is to stay."""
        heads = {u.name: self._own(u) for u in uses if u.kind == "lm_head"}
        follows = [u.kind == "embeddings" and u.name in heads and self.embeddings is None and self._rule(u) is None for u in uses]
        return [heads[u.name] if tied else self._own(u) for u, tied in zip(uses, follows, strict=True)]

    def _own(self, use: Use) -> Grid | None:
        if use.kind in _FINE:
            return None
        rule, kind = self._rule(use), getattr(self, use.kind)
        if rule is not None:
            return self._grid((self.rules or {})[rule])
        default = {"embeddings": KEEP, "lm_head": max(self.bits, 8)}.get(use.kind, self.bits)
        return self._grid(default if kind is None else kind)

    def _rule(self, use: Use) -> str | None:
        """The first pattern that fits a name of the weight: its own, with or without its last part, or that of the module that reads it."""
        names = {use.name, use.name.rpartition(".")[0], use.module} - {""}
        return next((p for p in self.rules or {} if any(fnmatchcase(n, p) for n in names)), None)

    # ------------------------------------------------------------------ what was asked for
    def _check_asked(self, uses: list[Use], grids: list[Grid | None]) -> None:
        """Raise M203 when a rule or a kind that was named fits nothing, or nothing that can be quantized, and when experts cannot."""
        for use, grid in zip(uses, grids, strict=True):
            misfit = "" if grid is None or use.weight is None else grid.misfit(use.weight)
            if misfit and use.kind == "experts":
                fitting = ", ".join(str(g) for g in GROUPS if use.weight is not None and use.weight.shape[-1] % g == 0)
                raise self._refuse(f"{use.name}: {misfit}", f"use group {fitting} for it, or leave experts with experts={KEEP}" if fitting else _LEAVE)
        asked = [(k, [u.kind == k for u in uses]) for k in _KINDS if getattr(self, k) is not None]
        asked += [(f"rule {p!r}", [self._rule(u) == p for u in uses]) for p in self.rules or {}]
        for what, fits in asked:
            if not any(fits):
                names = f"; its weights are called like {uses[0].name!r}, in {uses[0].module!r}" if uses else ""
                raise self._refuse(f"{what} fits no weight of this model", f"leave it out{names}")
            self._check_fits(what, [(u, g) for u, g, fit in zip(uses, grids, fits, strict=True) if fit])

    def _check_fits(self, what: str, matched: list[tuple[Use, Grid | None]]) -> None:
        if all(u.kind in _FINE for u, _ in matched):
            raise self._refuse(f"{what} fits only {matched[0][0].kind}s, which keep 16 bits or more", "leave it out")
        misfits = [(u.name, g.misfit(u.weight)) for u, g in matched if g is not None and u.weight is not None]
        if misfits and all(reason for _, reason in misfits):
            raise self._refuse(f"{what} fits nothing that can be quantized: {': '.join(misfits[0])}", "choose another group")

    # ------------------------------------------------------------------ graph
    def _rewrite(self, program: Program, context: Context, todo: list[tuple[Use, Grid]]) -> list[tuple[Use, Grid]]:
        made: dict[tuple[str, str, Grid], fx.Node] = {}
        done = []
        for use, grid in todo:
            assert use.weight is not None
            misfit = grid.misfit(use.weight)
            if misfit:
                context.miss(use.node, f"left as it is: {misfit}")
                continue
            key = (use.name, use.weight.origin, grid)  # equal origins are equal contents
            with program.graph.inserting_before(use.node):
                made[key] = made.get(key) or self._dequantize(program, use, use.weight, grid)
                self._put(program, use, made[key])
            done.append((use, grid))
        return done

    def _dequantize(self, program: Program, use: Use, weight: Weight, grid: Grid) -> fx.Node:
        parts = zip(quantize_weight(weight, grid).parts(), (PACKED, "_scale", "_zero_point"), strict=False)
        arguments = [program.read_weight(program.add_weight(use.name + ending, part)) for part, ending in parts]
        return call_like(program, use.node, self.name, ops.dequantize.default, *arguments, bits=grid.bits)

    def _put(self, program: Program, use: Use, weight: fx.Node) -> None:
        """Let a node read the new weight; a product that takes its matrix transposed becomes a linear layer."""
        node = use.node
        if node.target in (aten.addmm.default, aten.mm.default, aten.matmul.default):
            x, *bias = (node.args[1], node.args[0]) if node.target == aten.addmm.default else (node.args[0],)
            node.replace_all_uses_with(call_like(program, node, self.name, aten.linear.default, x, weight, *bias))
            program.graph.erase_node(node)
        else:
            node.update_arg(use.place, weight)


_LEAVE = f"leave experts with experts={KEEP}: no group divides it"


# ---------------------------------------------------------------------- facts
def _size_bytes(program: Program) -> int:
    return sum(w.size_bytes for w in {id(w): w for w in program.weights.values()}.values())


def _facts(program: Program, uses: list[Use], done: list[tuple[Use, Grid]], before: int) -> dict[str, Any]:
    """Bytes of all weights before and after, and for each kind the weights that were packed and those that stay."""
    found: dict[str, Any] = {"bytes_before": before, "bytes_after": _size_bytes(program), "bytes_quantized": 0, "kinds": {}}
    packed = {(u.name, u.place, u.node): g for u, g in done}
    counted: set[tuple[str, Grid | None]] = set()
    for use in uses:
        grid = packed.get((use.name, use.place, use.node))
        if use.weight is None or (use.name, grid) in counted:
            continue
        counted.add((use.name, grid))
        row = found["kinds"].setdefault(use.kind, {"quantized": 0, "kept": 0, "bytes_quantized": 0, "bytes_kept": 0, "grids": []})
        row["kept" if grid is None else "quantized"] += 1
        row["bytes_kept" if grid is None else "bytes_quantized"] += use.weight.size_bytes
        row["grids"] = sorted({*row["grids"], *([] if grid is None else [str(grid)])})
    found["bytes_quantized"] = sum(row["bytes_quantized"] for row in found["kinds"].values())
    return found
