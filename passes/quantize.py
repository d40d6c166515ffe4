"""`quantize`: weights become integers of 2, 4 or 8 bits, or small floats, with a scale a group; routers and gates never do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import fx

from moec.errors import MoecError
from moec.hessians import coverage, enough_text
from moec.mixture import Mixture
from moec.pipeline import Context, Contract, Pass
from moec.precision import Budget, without_data
from moec.program import Program
from moec.quantization import BITS, GROUPS, INTEGERS, Grid, Made, Packed, quantize_stack
from moec.rewriting import call_like
from moec.roles import PACKED, Use, weight_uses, width_name
from moec.sequential import Key, Sequential, key_of
from moec.small_floats import Floats
from moec.weights import from_tensor

aten, ops = torch.ops.aten, torch.ops.moec
KEEP = 16  # the number of bits that leaves a weight as it is
_KINDS = ("experts", "attention", "dense", "embeddings", "lm_head")
_FINE = ("router", "gate")


@dataclass(frozen=True)
class Quantize(Pass):
    """Replace weights by `moec::dequantize(packed, scale, zero)`; nothing else in the graph changes. Only `gptq` needs data.

    Matrices are told apart by structure: `experts`, `attention` (its projections), `dense` (all other linear layers), `embeddings` and
    `lm_head`. Routers, gates of shared experts, norms and biases stay as they are, whatever is asked: a router of 4 bits sends one
    token in seven to other experts, for a thousandth of the bytes. A table that is embedding and head at once stays one: it is packed
    once when the head is quantized, unless `embeddings` or a rule wants the two apart.

    Packed weights are constants: gradients reach the scales, never the integers.

    Attributes:
        bits: 2, 4 or 8, of everything that no other option names; 16 leaves it as it is. 3 is a grid of 3 bits in the bytes of 4.
        group: neighbours along a row that share a scale: 16, 32, 64 or 128. A weight whose rows it does not divide is left and reported;
            with experts that is an error, they being what there is to save.
        method: `rtn` (round to nearest), `hqq` (scales refined by half-quadratic splitting; slower, never further off) or `gptq` (layer by
            layer, errors of the outputs on a calibration text made small, see `moec.gptq` and `moec.hessians`; it holds the results in
            memory). Embeddings, and heads tied to them, are read by a row a token: where they are to have `gptq` they get `hqq`.
        symmetric: no zero points. This grid is the one that every target has.
        format: `int`; or small floats, which PyTorch runs and targets may refuse: `fp8` (E4M3), or `nvfp4` (E2M1, groups of 16) with
            `fp8` where 8 bits are asked for. They have no method but `rtn`.
        experts, attention, dense, embeddings, lm_head: bits of one kind. By default as `bits`, but the head has at least 8 (its error
            goes straight into the logits) and embeddings stay, being read a row a token.
        rules: patterns of weights' or modules' names to bits, or to tables of `bits`, `group`, `method`, `symmetric`, `format`; the first that
            fits decides, before the options of the kinds: `rules={"*.layers.0.*": 8, "*.down_proj": {"bits": 4, "group": 32}}`.
        budget_bits: mean bits of the experts' numbers, in place of one width for all: each expert gets one of `widths`, decided for all
            layers at once by what it costs the model on a calibration text. Experts that a rule names are left out of it.
        widths: that an expert may have: two or more of 2, 4 and 8.
        sensitivity: how the cost is measured: `fisher`, `error` or `frequency`, see `moec.sensitivity`.
        floor: tokens that are to reach every expert. `gptq` reads up to four times the calibration text that was allowed for it.
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
    budget_bits: float | None = None
    widths: Sequence[int] = (2, 4)
    sensitivity: str = "fisher"
    floor: int = 256
    format: str = INTEGERS

    def needs_calibration(self) -> bool:
        """Whether anything is to be done by `gptq`, or experts are to have several widths."""
        methods = {self.method, *(rule["method"] for rule in (self.rules or {}).values() if isinstance(rule, Mapping) and "method" in rule)}
        return self.budget_bits is not None or "gptq" in methods

    def outline(self) -> Pass:
        """The same grids rounded to nearest, an expert of a budget in its narrowest width."""
        return type(self)(**without_data(vars(self)))

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of places where a weight was replaced. Raises M203 on settings that are none, or that fit no weight, and where
        a calibration text is missing."""
        self._check()
        if self.needs_calibration():  # before any work
            context.require_calibration()
        uses = weight_uses(program)
        grids = self._choose(uses)
        self._check_asked(uses, grids)
        before = _size_bytes(program)
        todo = _fitting(context, [(u, g) for u, g in zip(uses, grids, strict=True) if g is not None and u.weight is not None])
        todo = todo if self._budget is None else self._spend(program, context, self._budget, todo)
        made = self._calibrated(program, context, todo)
        context.unquantized = context.unquantized or program.clone()
        self._rewrite(program, todo, made)
        program.graph.eliminate_dead_code()
        program.drop_unused_weights()
        context.facts.update(_facts(program, uses, todo, before))
        return len(todo)

    # ------------------------------------------------------------------ settings
    @property
    def _budget(self) -> Budget | None:
        return None if self.budget_bits is None else Budget(self.budget_bits, self.widths, self.sensitivity)

    def _refuse(self, what: str, fix: str) -> MoecError:
        return MoecError("M203", what, str(self), fix)

    def _check(self) -> None:
        if self.rules is not None and not isinstance(self.rules, Mapping):
            raise self._refuse(f"rules={self.rules!r} is not a table of patterns", 'write for example rules={"*.layers.0.*": 8}')
        if type(self.floor) is not int or self.floor < 0:
            raise self._refuse(f"floor={self.floor!r} is not a number of tokens", "0 takes the text that was allowed, and no more")
        what, fix = ("", "") if self._budget is None else self._budget.problem
        if what:
            raise self._refuse(what, fix)
        if self._budget is not None and self.experts is not None:
            raise self._refuse("experts and budget_bits both say how many bits experts have", "leave one of them out")
        if self._budget is not None and self.format != INTEGERS:
            raise self._refuse(f"budget_bits shares out integers, not {self.format}", "leave one of them out")
        given = [self.bits, *(getattr(self, k) for k in _KINDS), *(self.rules or {}).values()]
        for setting in (g for g in given if g is not None):
            unknown = sorted(set(setting) - {"bits", "group", "method", "symmetric", "format"}) if isinstance(setting, Mapping) else []
            if unknown:
                raise self._refuse(f"a rule has no setting {unknown[0]!r}", "a rule's table may hold bits, group, method, symmetric and format")
            grid = self._grid(setting)
            if grid is not None and grid.problem:
                fix = f"bits are {', '.join(map(str, BITS))}, or {KEEP} to leave weights as they are; groups are {', '.join(map(str, GROUPS))}"
                raise self._refuse(grid.problem, fix)

    def _grid(self, setting: int | Mapping[str, Any]) -> Grid | None:
        """The grid that a number of bits or a rule's table stands for; None for none."""
        own: Mapping[str, Any] = setting if isinstance(setting, Mapping) else {"bits": setting}
        grid = replace(Grid(self.bits, self.group, self.symmetric, self.method, format=self.format), **own)
        return None if type(grid.bits) is int and grid.bits == KEEP else grid.settled()

    def _choose(self, uses: list[Use]) -> list[Grid | None]:
        """Each use's grid; None where the weight is to stay."""
        heads = {u.name: self._own(u) for u in uses if u.kind == "lm_head"}
        follows = [u.kind == "embeddings" and u.name in heads and self.embeddings is None and self._rule(u) is None for u in uses]
        shared = {u.name for u, tied in zip(uses, follows, strict=True) if tied}
        return [_by_rows(heads[u.name] if u.name in shared else self._own(u), u, shared) for u in uses]

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

    # ------------------------------------------------------------------ data
    def _calibrated(self, program: Program, context: Context, todo: list[tuple[Use, Grid]]) -> dict[Key, Made]:
        """What is made of the weights where some need data."""
        if not any(g.method == "gptq" for _, g in todo):
            return {}
        calibration, counts = enough_text(program, context.require_calibration(), self.floor)
        windows = calibration.windows()
        job = Sequential(program, todo, f"text {calibration.sha256[:12]}, {windows.numel()} tokens, seed {calibration.seed}")
        job.run(calibration.batches(program.inputs))
        context.facts["calibration"] = {"tokens": windows.numel(), "floor": self.floor, "rounded": job.rounded, "blocks": coverage(counts)}
        for node, few in ((n, [e for e, c in enumerate(c.tolist()) if c < self.floor]) for n, c in counts.items()):
            if few:
                context.miss(node, f"fewer than {self.floor} tokens of the calibration text reached experts {', '.join(map(str, few))}")
        for use in {u.name: u for u, _ in todo if any(r.partition("[")[0] == u.name for r in job.rounded)}.values():
            context.miss(use.node, f"rounded to nearest, its inputs giving no Hessian: {', '.join(r for r in job.rounded if r.startswith(use.name))}")
        return job.made

    def _spend(self, program: Program, context: Context, budget: Budget, todo: list[tuple[Use, Grid]]) -> list[tuple[Use, Grid]]:
        """The same with each expert's own width."""
        free = [(u, g) for u, g in todo if u.kind == "experts" and self._rule(u) is None]
        if not free:
            raise self._refuse("budget_bits fits no experts of this model", "leave it out")
        mixed, facts = budget.spend(program, context.require_calibration().batches(program.inputs), free)
        context.facts["allocation"] = facts
        own = {(u.node, u.place): g for u, g in mixed}
        return [(u, own.get((u.node, u.place), g)) for u, g in todo]

    # ------------------------------------------------------------------ graph
    def _rewrite(self, program: Program, todo: list[tuple[Use, Grid]], made: dict[Key, Made]) -> None:
        nodes: dict[Key, fx.Node] = {}
        for use, grid in todo:
            assert use.weight is not None
            key = key_of(use, grid)
            with program.graph.inserting_before(use.node):
                nodes[key] = nodes.get(key) or self._stand_in(program, use, made.get(key) or quantize_stack(use.weight, grid), grid)
                self._put(program, use, nodes[key])

    def _stand_in(self, program: Program, use: Use, made: Made | Floats, grid: Grid) -> fx.Node:
        """What stands for the weight: its numbers, or those of each width one after another and brought into their order."""
        if isinstance(made, Floats):
            parts = zip(made.parts(), (PACKED, "_scale", "_overall"), strict=False)
            arguments = [program.read_weight(program.add_weight(use.name + ending, part)) for part, ending in parts]
            return call_like(program, use.node, self.name, ops.dequantize_float.default, *arguments, format=grid.format)
        if isinstance(made, Packed):
            return self._dequantize(program, use, use.name, made, grid)
        own = [self._dequantize(program, use, width_name(use.name, g.bits), part, g) for part, (g, _) in zip(made, grid.parts(), strict=True)]
        order = torch.tensor(Mixture(grid.widths).order)
        places = program.read_weight(program.add_weight(f"{use.name}_order", from_tensor(order, f"order{order.tolist()}")))
        joined = call_like(program, use.node, self.name, aten.cat.default, own)
        return call_like(program, use.node, self.name, aten.index_select.default, joined, 0, places)

    def _dequantize(self, program: Program, use: Use, name: str, packed: Packed, grid: Grid) -> fx.Node:
        parts = zip(packed.parts(), (PACKED, "_scale", "_zero_point"), strict=False)
        arguments = [program.read_weight(program.add_weight(name + ending, part)) for part, ending in parts]
        return call_like(program, use.node, self.name, ops.dequantize.default, *arguments, bits=grid.stored)

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


def _by_rows(grid: Grid | None, use: Use, shared: set[str]) -> Grid | None:
    """A table's grid: no product makes up for one row's error, so data are of no use."""
    table = use.kind == "embeddings" or use.name in shared
    return replace(grid, method="hqq") if table and grid is not None and grid.method == "gptq" else grid


def _fitting(context: Context, wanted: list[tuple[Use, Grid]]) -> list[tuple[Use, Grid]]:
    """Those that fit their grids; the others are left."""
    found = []
    for use, grid in wanted:
        assert use.weight is not None
        misfit = grid.misfit(use.weight)
        if misfit:
            context.miss(use.node, f"left as it is: {misfit}")
        else:
            found.append((use, grid))
    return found


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
