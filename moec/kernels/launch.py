"""Launching the kernels: shapes in, grids out, and nothing that waits for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moec.dialect import Activation, Routing
from moec.dialect.moe import router_logits
from moec.kernels.checks import check_experts, check_ids, check_route
from moec.kernels.packed import Packed
from moec.kernels.starting import capability, on_device_of, start
from moec.kernels.tiles import FEW_TOKENS, Tile, rows_for, tile_for

_COMBINE_BLOCK, _ALIGN_BLOCK = 1024, 1024
_Weight = Tensor | Packed


def route(logits: Tensor, bias: Tensor | None, rule: Routing) -> tuple[Tensor, Tensor]:
    """`moec::route` in one kernel.

    Args:
        logits: `[..., E]` in float16, bfloat16 or float32. bias: `[E]`.

    Raises:
        MoecError: M212 for a device, dtype or shape that it does not take, M203 for a rule that doesn't fit E experts.
    """
    from moec.kernels.device.route import route_kernel

    check_route(logits, bias, rule)
    experts, flat = logits.shape[-1], logits.reshape(-1, logits.shape[-1]).contiguous()
    weights = flat.new_empty((*logits.shape[:-1], rule.top_k), dtype=torch.float32)
    ids = flat.new_empty(weights.shape, dtype=torch.int64)
    if not len(flat):
        return weights, ids
    with on_device_of(logits):
        start(
            route_kernel, (len(flat),),
            flat, flat if bias is None else bias.contiguous(), weights, ids, len(flat), rule.scale, rule.epsilon, rule.floor,
            EXPERTS=experts, K=rule.top_k, K_WIDE=_wide(rule.top_k), PLACES_WIDE=_wide(experts // rule.groups), GROUPS=rule.groups,
            GROUPS_WIDE=_wide(rule.groups), TOP_GROUPS=rule.top_groups, GROUP_SCORE=rule.group_score, SCORE=rule.score, COMBINE=rule.combine,
            CLOSED_AS_ZERO=rule.closed_as_zero, HAS_BIAS=bias is not None, BY_LOGITS=rule.combine == "softmax" and bias is None and rule.groups == 1,
            SPLITS=1, FLOORED=bool(rule.floor), num_warps=1 if experts <= 256 else 4,
        )  # fmt: skip
    return weights, ids


@dataclass(frozen=True)
class Order:
    """The routed pairs by expert, as `moec.kernels.device.align` explains; for few tokens empty, and every pair is a tile."""

    tiles: int
    pairs: Tensor
    offsets: Tensor
    experts: Tensor


def align(ids: Tensor, experts: int, rows: int) -> Order:
    """Sort pairs by expert and cut them into tiles of `rows`, in one kernel. ids: `[T, K]` int64, contiguous."""
    from moec.kernels.device.align import align_kernel

    count = ids.numel()
    tiles = count // rows + experts
    order, offsets, owners = (torch.empty(n, dtype=torch.int32, device=ids.device) for n in (count, experts + 1, tiles))
    start(align_kernel, (experts,), ids, order, offsets, owners, count, tiles, EXPERTS=experts, ROWS=rows, BLOCK=_ALIGN_BLOCK)
    return Order(tiles, order, offsets, owners)


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, w_in: _Weight, w_out: _Weight, b_in: Tensor | None = None, b_out: Tensor | None = None, *,
    rule: Activation, score_before: bool = False, tile: Tile | None = None, sort: bool | None = None, checked: bool = False,
) -> Tensor:  # fmt: skip
    """`moec::experts` in three kernels, or four where there are more tokens than a tile has rows.

    Args:
        x, ids, weights, w_in, w_out, b_in, b_out: as `moec::experts` takes them; the matrices may be `Packed`, and strided.
        rule: the activation.
        tile: sizes of the pieces instead of the table's. sort: whether to sort the pairs by expert, instead of by the number of tokens.
        checked: raise for ids that are no experts, which waits for the device. Otherwise such a choice adds nothing to its token.

    Raises:
        MoecError: M212 for a device, dtype, shape or layout that it does not take, or with `checked` for an id.
    """
    check_experts(x, ids, weights, w_in, w_out, b_in, b_out, rule)
    if checked:
        check_ids(ids, w_in.shape[0])
    rows, top_k = x.reshape(-1, x.shape[-1]), ids.shape[-1]
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    ids, weights = ids.reshape(-1, top_k).contiguous(), weights.reshape(-1, top_k).contiguous()
    if not len(rows):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    height = tile.rows if tile else rows_for(len(rows), top_k, w_in.shape[0])
    few = len(rows) <= min(height, FEW_TOKENS) if sort is None else not sort
    with on_device_of(x):
        order = Order(ids.numel(), ids, ids, ids) if few else align(ids, w_in.shape[0], height)
        call = _Call(rows, ids, weights, order, few, rule, score_before, height, tile, w_in.shape[0])
        return _combine(call, _rows_out(call, _rows_in(call, w_in, b_in), w_out, b_out)).reshape(x.shape)


def moe(
    x: Tensor, router_weight: Tensor, router_bias: Tensor | None, selection_bias: Tensor | None, w_in: _Weight, w_out: _Weight,
    b_in: Tensor | None, b_out: Tensor | None, *, routing: Routing, rule: Activation, score_before: bool = False,
) -> Tensor:  # fmt: skip
    """`moec::moe`: the router's product in float32, `route`, `experts`."""
    weights, ids = route(router_logits(x, router_weight, router_bias), selection_bias, routing)
    return experts(x, ids, weights, w_in, w_out, b_in, b_out, rule=rule, score_before=score_before)


@dataclass(frozen=True)
class _Call:
    """What the three kernels of one call share."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    order: Order
    few: bool
    rule: Activation
    before: bool
    height: int
    tile: Tile | None
    count: int

    def tables(self) -> tuple[Tensor, ...]:
        return self.ids, self.order.pairs, self.order.offsets, self.order.experts

    def cut(self, weight: _Weight) -> Tile:
        kind, group = ("packed", weight.group) if isinstance(weight, Packed) else ("single" if weight.dtype == torch.float32 else "half", 0)
        return self.tile or tile_for(capability(self.x.device), kind, self.height, group)

    def shared(self) -> dict[str, Any]:
        top_k = self.ids.shape[-1]
        return {"EXPERTS": self.count, "K": top_k, "K_WIDE": _wide(top_k)}

    def precise(self) -> dict[str, Any]:
        return {"FEW": self.few, "PRECISION": "ieee" if self.x.dtype == torch.float32 else "tf32"}


def _rows_in(call: _Call, w: _Weight, bias: Tensor | None) -> Tensor:
    from moec.kernels.device.grouped_gemm import rows_in_kernel

    rule, tile = call.rule, call.cut(w)
    inner = w.shape[1] // rule.rows_per_neuron
    hidden = call.x.new_empty(call.ids.numel(), inner)
    values, scale, zero, strides, packing = _operands(w, tile)
    options = tile.options(rule.gated)
    grid = (call.order.tiles * -(-inner // options["BLOCK_N"]),)
    start(
        rows_in_kernel, grid, call.x, *call.tables(), call.weights, values, scale, zero, values if bias is None else bias.contiguous(), hidden,
        len(call.x), call.order.tiles, call.x.stride(0), *strides,
        DEPTH=w.shape[2], INNER=inner, BEFORE=call.before, GATED=rule.gated, NAME=rule.name, ALPHA=rule.alpha, BETA=rule.beta, LIMIT=rule.limit,
        CLAMP_AFTER=rule.clamp_after, HAS_BIAS=bias is not None, **call.shared(), **call.precise(), **packing, **options,
    )  # fmt: skip
    return hidden


def _rows_out(call: _Call, hidden: Tensor, w: _Weight, bias: Tensor | None) -> Tensor:
    from moec.kernels.device.grouped_gemm import rows_out_kernel

    tile, width = call.cut(w), w.shape[1]
    result = call.x.new_empty(len(hidden), width)
    values, scale, zero, strides, packing = _operands(w, tile)
    grid = (call.order.tiles * -(-width // tile.columns),)
    start(
        rows_out_kernel, grid, hidden, *call.tables(), values, scale, zero, values if bias is None else bias.contiguous(), result,
        len(call.x), call.order.tiles, *strides,
        INNER=w.shape[2], WIDTH=width, HAS_BIAS=bias is not None, **call.shared(), **call.precise(), **packing, **tile.options(),
    )  # fmt: skip
    return result


def _combine(call: _Call, result: Tensor) -> Tensor:
    from moec.kernels.device.grouped_gemm import combine_kernel

    out = torch.empty((len(call.x), result.shape[1]), dtype=call.x.dtype, device=call.x.device)
    block = min(_COMBINE_BLOCK, _wide(result.shape[1]))
    start(
        combine_kernel, (len(call.x), -(-result.shape[1] // block)),
        result, call.ids, call.weights, out, WIDTH=result.shape[1], BEFORE=call.before, BLOCK=block, **call.shared(),
    )  # fmt: skip
    return out


def _operands(w: _Weight, tile: Tile) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...], dict[str, Any]]:
    """Weights, scales, zero points, their strides, and how they are packed. What is absent is stood in for by the weights."""
    if isinstance(w, Tensor):
        return w, w, w, (*w.stride(), 0), {"FORMAT": "plain", "GROUP": 1, "ROW_GROUP": 1, "HAS_ZERO": False, "LATE": False}
    values = w.values.view(torch.uint8) if w.format == "fp8" else w.values
    late = tile.rows <= FEW_TOKENS and w.group % tile.depth == 0
    packing = {"FORMAT": w.format, "GROUP": w.group, "ROW_GROUP": w.rows, "HAS_ZERO": w.zero is not None, "LATE": late}
    return values, w.scale, values if w.zero is None else w.zero, (*values.stride(), w.scale.stride(0)), packing


def _wide(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
