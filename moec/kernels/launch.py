"""Launching the kernels: shapes in, grids out, and nothing that waits for the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moec.dialect import Activation, Routing
from moec.kernels.checks import check_experts, check_ids, check_router
from moec.kernels.packed import ExpertCodes
from moec.kernels.routing import route, routed, router_parts
from moec.kernels.starting import capability, multiprocessors, on_device_of, start, wide
from moec.kernels.tiles import FEW_TOKENS, Tile, rows_for, tile_for

_COMBINE_BLOCK, _ALIGN_BLOCK = 1024, 1024
_Weight = Tensor | ExpertCodes
__all__ = ["align", "experts", "moe", "route", "router_parts"]


@dataclass(frozen=True)
class Order:
    """The routed pairs by expert, as `moec.kernels.device.align` explains; for few tokens empty, and every pair is a
    tile."""

    tiles: int
    pairs: Tensor
    offsets: Tensor
    experts: Tensor


def align(ids: Tensor, experts: int, rows: int) -> Order:
    """Sort pairs by expert and cut them into tiles of `rows`, in one kernel, or two for more pairs than a program reads
    at once.

    Args:
        ids: `[T, K]` int64, contiguous.
    """
    from moec.kernels.device.align import align_kernel, count_kernel

    count = ids.numel()
    cut = {"EXPERTS": experts, "WIDE": wide(experts), "BLOCK": _ALIGN_BLOCK}
    counts = None
    if count >= _ALIGN_BLOCK:
        counts = torch.empty((count // _ALIGN_BLOCK + 1, experts), dtype=torch.int32, device=ids.device)
        start(count_kernel, (len(counts),), ids, count, counts, **cut)
    tiles = count // rows + experts
    order, offsets, owners = (torch.empty(n, dtype=torch.int32, device=ids.device) for n in (count, experts + 1, tiles))
    start(
        align_kernel, (experts,), ids, counts, count, tiles, order, offsets, owners, ROWS=rows, ALONE=counts is None,
        **cut,
    )  # fmt: skip
    return Order(tiles, order, offsets, owners)


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, w_in: _Weight, w_out: _Weight, b_in: Tensor | None = None, b_out: Tensor |
    None = None, *, rule: Activation, score_before: bool = False, tile: Tile | None = None, sort: bool | None = None,
    checked: bool = False, resident: int | None = None,
) -> Tensor:  # fmt: skip
    """`moec::experts` in three kernels, or four where there are more tokens than a tile has rows, and five where pairs
    are so many that they are counted first.

    Args:
        x, ids, weights, w_in, w_out, b_in, b_out: as `moec::experts` takes them; the matrices may be `ExpertCodes`, and
            strided.
        rule: the activation.
        tile: sizes of the pieces instead of the table's.
        sort: whether to sort the pairs by expert; by default, and whatever is said where a tile has too few rows, for
            more than a few tokens.
        checked: raise for ids that are no experts, which waits for the device. Otherwise such a choice adds nothing to
            its token.
        resident: `Tile.resident` instead of the tile's.

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
    few = len(rows) <= (FEW_TOKENS if sort is None else height) and len(rows) <= height and not sort
    with on_device_of(x):
        order = Order(ids.numel(), ids, ids, ids) if few else align(ids, w_in.shape[0], height)
        call = _Call(rows, ids, weights, order, few, rule, score_before, height, tile, resident, w_in.shape[0])
        return _combine(call, _rows_out(call, _rows_in(call, w_in, b_in), w_out, b_out)).reshape(x.shape)


def moe(
    x: Tensor, router_weight: Tensor, router_bias: Tensor | None, selection_bias: Tensor | None, w_in: _Weight, w_out:
    _Weight, b_in: Tensor | None, b_out: Tensor | None, *, routing: Routing, rule: Activation, score_before: bool =
    False, resident: int | None = None,
) -> Tensor:  # fmt: skip
    """`moec::moe` in five kernels, for many tokens six or seven: router's product in float32, `route`, `experts`."""
    check_router(x, router_weight, router_bias, selection_bias, routing)
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    if not len(rows):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    weights, ids = routed(router_parts(rows, router_weight), router_bias, selection_bias, routing, x.shape[:-1])
    return experts(x, ids, weights, w_in, w_out, b_in, b_out, rule=rule, score_before=score_before, resident=resident)


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
    resident: int | None
    count: int

    def tables(self) -> tuple[Tensor, ...]:
        return self.ids, self.order.pairs, self.order.offsets, self.order.experts

    def cut(self, weight: _Weight) -> Tile:
        kind, group = (
            ("packed", weight.group)
            if isinstance(weight, ExpertCodes)
            else ("single" if weight.dtype == torch.float32 else "half", 0)
        )
        tile = self.tile or tile_for(capability(self.x.device), kind, self.height, group)
        return tile if self.resident is None else replace(tile, resident=self.resident)

    def programs(self, tile: Tile, columns: int) -> tuple[int]:
        """The grid for so many blocks of columns: a program a piece of work, or as many as a persistent kernel has."""
        pieces = self.order.tiles * columns
        return (min(pieces, tile.resident * multiprocessors(self.x.device)) if tile.resident else pieces,)

    def shared(self) -> dict[str, Any]:
        top_k = self.ids.shape[-1]
        return {"EXPERTS": self.count, "K": top_k, "K_WIDE": wide(top_k)}

    def precise(self) -> dict[str, Any]:
        return {"FEW": self.few, "PRECISION": "ieee" if self.x.dtype == torch.float32 else "tf32"}


def _rows_in(call: _Call, w: _Weight, bias: Tensor | None) -> Tensor:
    rule, tile = call.rule, call.cut(w)
    if tile.resident:
        from moec.kernels.device.persistent import rows_in_persistent_kernel as rows_in_kernel
    else:
        from moec.kernels.device.grouped_gemm import rows_in_kernel
    inner = w.shape[1] // rule.rows_per_neuron
    hidden = call.x.new_empty(call.ids.numel(), inner)
    values, scale, zero, strides, packing = _operands(w, tile, call.x.dtype)
    options = tile.options(rule.gated)
    grid = call.programs(tile, -(-inner // options["BLOCK_N"]))
    start(
        rows_in_kernel, grid, call.x, *call.tables(), call.weights, values, scale, zero, None if bias is None else
        bias.contiguous(), len(call.x), call.order.tiles, call.x.stride(0), *strides, hidden, DEPTH=w.shape[2],
        INNER=inner, BEFORE=call.before, GATED=rule.gated, NAME=rule.name, ALPHA=rule.alpha, BETA=rule.beta,
        LIMIT=rule.limit, CLAMP_AFTER=rule.clamp_after, HAS_BIAS=bias is not None, **call.shared(), **call.precise(),
        **packing, **options,
    )  # fmt: skip
    return hidden


def _rows_out(call: _Call, hidden: Tensor, w: _Weight, bias: Tensor | None) -> Tensor:
    tile, width = call.cut(w), w.shape[1]
    if tile.resident:
        from moec.kernels.device.persistent import rows_out_persistent_kernel as rows_out_kernel
    else:
        from moec.kernels.device.grouped_gemm import rows_out_kernel
    result = call.x.new_empty(len(hidden), width)
    values, scale, zero, strides, packing = _operands(w, tile, call.x.dtype)
    grid = call.programs(tile, -(-width // tile.columns))
    start(
        rows_out_kernel, grid, hidden, *call.tables(), values, scale, zero, None if bias is None else bias.contiguous(),
        len(call.x), call.order.tiles, *strides, result, INNER=w.shape[2], WIDTH=width, HAS_BIAS=bias is not None,
        **call.shared(), **call.precise(), **packing, **tile.options(),
    )  # fmt: skip
    return result


def _combine(call: _Call, result: Tensor) -> Tensor:
    from moec.kernels.device.grouped_gemm import combine_kernel

    out = torch.empty((len(call.x), result.shape[1]), dtype=call.x.dtype, device=call.x.device)
    block = min(_COMBINE_BLOCK, wide(result.shape[1]))
    start(
        combine_kernel, (len(call.x), -(-result.shape[1] // block)),
        result, call.ids, call.weights, out, WIDTH=result.shape[1], BEFORE=call.before, BLOCK=block, **call.shared(),
    )  # fmt: skip
    return out


def _operands(
    w: _Weight, tile: Tile, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[int, ...], dict[str, Any]]:
    """Weights, scales, zero points, their strides, and how they are packed and lie."""
    if isinstance(w, Tensor):
        plain = {"FORMAT": "plain", "GROUP": 1, "ROW_GROUP": 1, "WORDS": False, "HAS_ZERO": False, "LATE": False}
        return w, None, None, (*w.stride(), 0), {**plain, "TURNED": _turned(w)}
    values = w.values.view(torch.uint8) if w.format == "fp8" else w.values
    words, turned, one = _in_words(w), _turned(values), w.group % tile.depth == 0
    cheap = w.format == "int4" and words and one and not turned and dtype != torch.float32  # to scale two at a time
    packing = {
        "FORMAT": w.format, "TURNED": turned, "GROUP": w.group, "ROW_GROUP": w.rows, "WORDS": words,
        "HAS_ZERO": w.zero is not None, "LATE": tile.rows <= FEW_TOKENS and one and not cheap,
    }  # fmt: skip
    return values, w.scale, w.zero, (*values.stride(), w.scale.stride(0)), packing


def _turned(values: Tensor) -> bool:
    """Whether rows lie side by side, as where a model keeps `[E, in, out]` and hands out its transpose."""
    return values.stride(1) == 1 and values.stride(2) != 1


def _in_words(w: ExpertCodes) -> bool:
    """Whether scales, zero points and 4-bit values of each expert, of these each row, are whole words of 32 bits."""
    parts: list[tuple[Tensor, tuple[int, ...]]] = [(t, (t.stride(0),)) for t in (w.scale, w.zero) if t is not None]
    if w.format == "int4":
        parts.append((w.values, (w.values.stride(0), w.values.stride(1), w.values.shape[2])))
    return all(n * t.element_size() % 4 == 0 for t, counts in parts for n in (t.storage_offset(), *counts))
