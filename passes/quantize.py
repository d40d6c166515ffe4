"""`quantize`: weights become integers of 2, 4 or 8 bits, or small floats, with a scale a group; routers and gates never
do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from moec.pipeline.passes import Context, Contract, Pass
from moec.program.functional import drop_dead
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.quantization.bit_budget import Budget, without_data
from moec.quantization.grid import INTEGERS, Grid
from moec.quantization.hessians import coverage, enough_text
from moec.quantization.in_common import overalls_of
from moec.quantization.milder import milder
from moec.quantization.rounding import PackedParts, quantize_stack
from moec.quantization.sequential import Key, Sequential, key_of
from moec.quantization.settings import KINDS, QuantizeSettings
from moec.recognition.weight_roles import PACKED, Use, weight_uses, width_name
from moec.weights.lazy import from_tensor
from moec.weights.weight import FloatCodes, PackedWeight
from moec.weights.widths import ExpertWidths

aten, ops = torch.ops.aten, torch.ops.moec


@dataclass(frozen=True)
class Quantize(Pass):
    """Put weights in 2, 4 or 8 bits, or in small floats; routers and gates stay.

    A weight becomes `moec::dequantize(packed, scale, zero)`. Only `gptq` and `budget_bits` need data.

    Matrices are told apart by structure: `experts`, `attention` (its projections), `dense` (all other linear layers),
    `embeddings` and `lm_head`. Routers, gates of shared experts, norms and biases stay as they are, whatever is asked:
    a router of 4 bits sends one token in seven to other experts, for a thousandth of the bytes. A table that is
    embedding and head at once stays one: it is packed once when the head is quantized, unless `embeddings` or a rule
    wants the two apart.

    Packed weights are constants: gradients reach the scales, never the integers.

    Attributes:
        bits: 2, 4 or 8, of everything that no other option names; 16 leaves it as it is. 3 is a grid of 3 bits in the
            bytes of 4.
        group: neighbours along a row that share a scale: 16, 32, 64 or 128. A weight whose rows it does not divide is
            left and reported; with experts that is an error, they being what there is to save.
        method: `rtn` (round to nearest), `hqq` (scales refined by half-quadratic splitting; slower, never further off)
            or `gptq` (layer by layer, errors of the outputs on a calibration text made small, see
            `moec.quantization.gptq` and `moec.quantization.hessians`; it holds the results in memory). Embeddings, and
            heads tied to them, are read by a row a token: where they are to have `gptq` they get `hqq`.
        symmetric: no zero points. This grid is the one that every target has.
        positive_scales: symmetric grids without negative scales, as TensorRT reads them inside its products. They waste
            the step by which the lowest code lies further out than the highest: the weights' error grows by 5 to 8 % at
            4 bits, by 0.3 % at 8, and at 2 by two thirds, or a tenth with `hqq`.
        format: `int`; or small floats, which PyTorch and TensorRT run, the latter on GPUs that have them: `fp8` (E4M3,
            one scale a weight), or `nvfp4` (E2M1, groups of 16) with `fp8` where 8 bits are asked for. They have no
            method but `rtn`, and no other groups.
        experts: bits of the experts' matrices; without it `bits`, or what `budget_bits` gives each of them.
        attention: bits of the projections of attention; without it `bits`.
        dense: bits of all other linear layers, shared experts among them; without it `bits`.
        embeddings: bits of tables that are read a row a token; without it they stay as they are.
        lm_head: bits of the head; without it `bits`, but at least 8: its error goes straight into the logits.
        rules: patterns of weights' or modules' names to bits, or to tables of `bits`, `group`, `method`, `symmetric`,
            `format`, `positive_scales`; the first that fits decides, before the options of the kinds:
            `rules={"*.layers.0.*": 8, "*.down_proj": {"bits": 4, "group": 32}}`.
        recipe: bits or tables by kind, as in `rules`, for what neither a rule nor an option names. What the model does
            not have is passed over, and groups that do not divide a row are halved, so a recipe fits every model.
            Beside the kinds it may name `down`, the last matrices of experts (of a dense model: of its feed-forward
            networks), and `always`, what every token reads beside experts: attention and dense layers. Both come before
            the kinds: `recipe={"always": 8, "experts": 4, "down": {"bits": 4, "group": 32}}`.
        budget_bits: mean bits of the experts' numbers, in place of one width for all: each expert gets one of `widths`,
            decided for all layers at once by what it costs the model on a calibration text. Experts that a rule names
            are left out of it; neither `experts` nor a recipe may name experts, or `down`, beside it.
        widths: that an expert may have: two or more of 2, 4 and 8.
        sensitivity: how the cost is measured: `fisher`, `error` or `frequency`, see `moec.quantization.sensitivity`.
        floor: tokens that are to reach every expert. `gptq` reads up to four times the calibration text that was
            allowed for it.
    """

    contract: ClassVar[Contract] = "approximate"
    quantizes: ClassVar[bool] = True

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
    positive_scales: bool = False
    recipe: Mapping[str, int | Mapping[str, Any]] | None = None

    def milder(self) -> tuple[Pass, ...]:
        return tuple(type(self)(**options) for options in milder(vars(self)))

    def needs_calibration(self) -> bool:
        """Whether anything is to be done by `gptq`, or experts are to have several widths; no float format is."""
        tables = [t for t in (self.rules, self.recipe) if isinstance(t, Mapping)]  # `apply` refuses what is none
        rules = [rule for table in tables for rule in table.values()]
        methods = {self.method, *(rule["method"] for rule in rules if isinstance(rule, Mapping) and "method" in rule)}
        return self.format == INTEGERS and (self.budget_bits is not None or "gptq" in methods)

    def without_data(self) -> Pass:
        """The same grids rounded to nearest, an expert of a budget in its narrowest width."""
        return type(self)(**without_data(vars(self)))

    def check_settings(self) -> None:
        self._settings.check()

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of places where a weight was replaced. Raises M203 on settings that are invalid or fit no
        weight, and where a calibration text is missing."""
        asked = self._settings
        asked.check()
        if self.needs_calibration():  # before any work
            context.require_calibration()
        uses = weight_uses(program)
        grids = asked.choose(uses)
        asked.check_asked(uses, grids)
        before = program.size_bytes
        todo = _fitting(
            context, [(u, g) for u, g in zip(uses, grids, strict=True) if g is not None and u.weight is not None]
        )
        todo = todo if asked.budget is None else _spend(program, context, asked, asked.budget, todo)
        made = self._calibrated(program, context, todo)
        self._rewrite(program, todo, made)
        drop_dead(program.graph)
        program.drop_unused_weights()
        context.widths = tuple(sorted({part.bits for _, grid in todo for part, _ in grid.parts()}))
        context.facts.update(_facts(program, uses, todo, before))
        return len(todo)

    @property
    def _settings(self) -> QuantizeSettings:
        default = Grid(
            self.bits, self.group, self.symmetric, self.method, format=self.format, positive_scales=self.positive_scales
        )
        budget = None if self.budget_bits is None else Budget(self.budget_bits, self.widths, self.sensitivity)
        return QuantizeSettings(
            default,
            {kind: getattr(self, kind) for kind in KINDS},
            self.rules,
            budget,
            self.floor,
            str(self),
            self.recipe,
        )

    # ------------------------------------------------------------------ data
    def _calibrated(self, program: Program, context: Context, todo: list[tuple[Use, Grid]]) -> dict[Key, PackedParts]:
        """What is made of the weights where some need data."""
        if not any(g.method == "gptq" for _, g in todo):
            return {}
        calibration, counts = enough_text(program, context.require_calibration(), self.floor)
        windows = calibration.windows()
        job = Sequential(
            program, todo, f"text {calibration.sha256[:12]}, {windows.numel()} tokens, seed {calibration.seed}"
        )
        job.run(calibration.batches(program.inputs))
        context.facts["calibration"] = {
            "tokens": windows.numel(),
            "floor": self.floor,
            "rounded": [str(matrix) for matrix in job.rounded],
            "blocks": coverage(counts),
        }
        for node, few in ((n, [e for e, c in enumerate(c.tolist()) if c < self.floor]) for n, c in counts.items()):
            if few:
                context.miss(
                    node,
                    f"fewer than {self.floor} tokens of the calibration text reached experts "
                    f"{', '.join(map(str, few))}",
                )
        for use in {u.name: u for u, _ in todo if any(r.name == u.name for r in job.rounded)}.values():
            context.miss(
                use.node,
                "rounded to nearest, its inputs giving no Hessian: "
                f"{', '.join(str(r) for r in job.rounded if r.name == use.name)}",
            )
        return job.made

    # ------------------------------------------------------------------ graph
    def _rewrite(self, program: Program, todo: list[tuple[Use, Grid]], made: dict[Key, PackedParts]) -> None:
        nodes: dict[Key, fx.Node] = {}
        overalls = overalls_of(todo)
        for use, grid in todo:
            assert use.weight is not None
            key = key_of(use, grid)
            with program.graph.inserting_before(use.node):
                nodes[key] = nodes.get(key) or self._stand_in(
                    program, use, made.get(key) or quantize_stack(use.weight, grid, overalls.get(key)), grid
                )
                self._put(program, use, nodes[key])

    def _stand_in(self, program: Program, use: Use, made: PackedParts | FloatCodes, grid: Grid) -> fx.Node:
        """What stands for the weight: its numbers, or those of each width one after another and brought into their
        order."""
        if isinstance(made, FloatCodes):
            parts = zip(made.parts(), (PACKED, "_scale", "_overall"), strict=False)
            arguments = [program.read_weight(program.add_weight(use.name + ending, part)) for part, ending in parts]
            return call_like(
                program,
                use.node,
                self.name,
                ops.dequantize_float.default,
                *arguments,
                format=grid.format,
                dtype=made.dtype,
            )
        if isinstance(made, PackedWeight):
            return self._dequantize(program, use, use.name, made, grid)
        own = [
            self._dequantize(program, use, width_name(use.name, g.bits), part, g)
            for part, (g, _) in zip(made, grid.parts(), strict=True)
        ]
        order = torch.tensor(ExpertWidths(grid.widths).order)
        places = program.read_weight(
            program.add_weight(f"{use.name}_order", from_tensor(order, f"order{order.tolist()}"))
        )
        joined = call_like(program, use.node, self.name, aten.cat.default, own)
        return call_like(program, use.node, self.name, aten.index_select.default, joined, 0, places)

    def _dequantize(self, program: Program, use: Use, name: str, packed: PackedWeight, grid: Grid) -> fx.Node:
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


def _spend(
    program: Program, context: Context, asked: QuantizeSettings, budget: Budget, todo: list[tuple[Use, Grid]]
) -> list[tuple[Use, Grid]]:
    """The same with each expert's own width."""
    free = [(u, g) for u, g in todo if u.kind == "experts" and asked.rule(u) is None]
    if not free:
        raise asked.refusal("budget_bits fits no experts of this model", "leave it out")
    mixed, facts = budget.spend(program, context.require_calibration().batches(program.inputs), free)
    context.facts["allocation"] = facts
    own = {(u.node, u.place): g for u, g in mixed}
    return [(u, own.get((u.node, u.place), g)) for u, g in todo]


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
def _facts(program: Program, uses: list[Use], done: list[tuple[Use, Grid]], before: int) -> dict[str, Any]:
    """Bytes of all weights before and after, and for each kind the weights that were packed and those that stay."""
    found: dict[str, Any] = {
        "bytes_before": before,
        "bytes_after": program.size_bytes,
        "bytes_quantized": 0,
        "kinds": {},
    }
    packed = {(u.name, u.place, u.node): g for u, g in done}
    counted: set[tuple[str, Grid | None]] = set()
    for use in uses:
        grid = packed.get((use.name, use.place, use.node))
        if use.weight is None or (use.name, grid) in counted:
            continue
        counted.add((use.name, grid))
        row = found["kinds"].setdefault(
            use.kind, {"quantized": 0, "kept": 0, "bytes_quantized": 0, "bytes_kept": 0, "grids": []}
        )
        row["kept" if grid is None else "quantized"] += 1
        row["bytes_kept" if grid is None else "bytes_quantized"] += use.weight.size_bytes
        row["grids"] = sorted({*row["grids"], *([] if grid is None else [str(grid)])})
    found["bytes_quantized"] = sum(row["bytes_quantized"] for row in found["kinds"].values())
    return found
