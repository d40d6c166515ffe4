"""Run a program without ever holding its weights: each is read when its consumer runs, by rows where that is possible,
and dropped.

The peak is the largest block that one operator needs: an expert, some rows of an embedding, 64 MiB of a projection. So
a model that is larger than the memory can be run, slowly, and an engine of it verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from moec.dialect import Activation, experts_reference, route_reference
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.moe_call import MoeCall
from moec.program.program import CPU, Program
from moec.weights.lazy import Weight, concat, rowwise
from moec.weights.threads import in_threads
from moec.weights.weight import Piece
from moec.weights.widths import taken

Handler = Callable[..., Any]


class StreamingInterpreter(fx.Interpreter):
    """Evaluates a program's graph node by node; a `get_attr` yields a lazy `Weight`, which becomes a tensor only inside
    its consumer."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module, garbage_collect_values=True, graph=program.graph)
        self._weights = program.weights

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A program's graph says that tensors are made on the meta device; here they are made on the CPU."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_on_cpu, args)), {name: _on_cpu(value) for name, value in kwargs.items()}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._weights[target]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        handler = _HANDLERS.get(target)
        if any(isinstance(a, Weight) for a in tree_leaves((args, kwargs))):
            if target in MoeCall.operators:
                return moe_output(MoeCall.evaluated(target, args, kwargs))
            if handler:
                return handler(*args, **kwargs)
        args, kwargs = fx.node.map_aggregate((args, kwargs), _loaded)
        return super().call_function(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().output(target, fx.node.map_aggregate(args, _loaded), kwargs)


class StreamingEngine(Engine):
    """A program in eager PyTorch that reads its weights anew in each run and keeps none."""

    def __init__(self, program: Program, name: str = "the captured program, streamed") -> None:
        self.name, self.inputs, self.outputs = name, program.inputs, program.outputs
        self.conditions, self.values = program.conditions, program.values
        self._program = program

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            values = StreamingInterpreter(self._program).run(
                *(inputs[i.name] for i in self.inputs), enable_io_processing=False
            )
        return dict(zip(self.outputs, values, strict=True))


def largest_piece_bytes(program: Program) -> int:
    """The most that a streamed run has to hold of one weight: a row of its leading dimension, an expert of a stack, or
    all of it where its consumer takes no part."""
    found = [0]
    for node in program.graph.nodes:
        if node.op == "get_attr":
            by_rows = all(user.target in _HANDLERS or user.target in MoeCall.operators for user in node.users)
            weight = program.weights[str(node.target)]
            found += [_row_bytes(part) for part in weight.expression()] if by_rows else [weight.size_bytes]
    return max(found)


def _row_bytes(weight: Weight) -> int:
    return weight.size_bytes if weight.atomic or not weight.shape else weight.size_bytes // max(1, weight.shape[0])


def check_finite(program: Program, tell: Callable[[int, str], None] = lambda _bytes, _name: None) -> None:
    """Read every weight once, block by block; raises M105 naming the first one that holds NaN or infinity. `tell` is
    told how many bytes are read, and of which weight."""
    done = 0
    for name, weight in program.weights.items():
        tell(done, name)
        if weight.dtype.is_floating_point:
            pieces = weight.pieces(0, weight.shape[0]) if weight.shape else [Piece(1, weight.load)]
            row_bytes = weight.dtype.itemsize * (weight.shape[-1] if len(weight.shape) > 1 else 1)
            told = _told(pieces, lambda rows, at=done, of=name, size=row_bytes: tell(at + rows * size, of))  # type: ignore[misc]
            in_threads(partial(_require_finite, name, weight.origin), told)
        done += weight.size_bytes


def _told(pieces: Iterable[Piece], tell: Callable[[int], None]) -> Iterator[Piece]:
    """The same pieces; with each, the number of rows before it is told."""
    done = 0
    for piece in pieces:
        tell(done)
        done += piece.rows
        yield piece
        del piece  # the next one is read beside it otherwise


def _require_finite(name: str, origin: str, piece: Piece) -> None:
    if not _finite(piece.read()):
        fix = "repair the checkpoint, or convert it from its original once more"
        raise MoecError("M105", f"the weight {name!r} holds NaN or infinity", origin, fix)


def _finite(block: Tensor) -> bool:
    if block.dtype.itemsize == 1:  # float8 has no reductions of its own
        block = block.float()
    # a sum is NaN or infinite whenever an element is, and is far cheaper than isfinite; it may also overflow, hence the
    # second look
    return bool(block.sum(dtype=torch.float32).isfinite()) or bool(block.isfinite().all())


def _on_cpu(value: Any) -> Any:
    return CPU if isinstance(value, torch.device) else value


def _loaded(value: Any) -> Any:
    return value.load() if isinstance(value, Weight) else value


# ---------------------------------------------------------------------- operators that need only a part of a weight at
def _embedding(weight: Weight, ids: Any, *_options: Any, **_named: Any) -> Tensor:
    """Reads only the rows that are asked for."""
    ids = _loaded(ids)
    rows, places = torch.unique(ids, return_inverse=True)
    return (
        torch.cat([weight.read(int(r), int(r) + 1) for r in rows])[places] if rows.numel() else weight.read(0, 0)[ids]
    )


def _linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """By blocks of output rows."""
    x, bias = _loaded(x), _loaded(bias)
    if not isinstance(weight, Weight):
        return F.linear(x, weight, bias)
    y = torch.cat([F.linear(x, block) for block in weight.blocks()], dim=-1)
    return y if bias is None else y + bias


def _dequantize(packed: Any, scale: Any, zero: Any = None, *, bits: int) -> Any:
    """Stays lazy: it commutes with slicing rows."""
    parts = [p for p in (packed, scale, zero) if p is not None]
    function = partial(torch.ops.moec.dequantize, bits=bits)
    return (
        rowwise("dequantize", function, *parts)
        if all(isinstance(p, Weight) for p in parts)
        else function(*map(_loaded, parts))
    )


def _dequantize_float(
    codes: Any, scale: Any, overall: Any = None, *, format: str, dtype: torch.dtype | None = None
) -> Any:
    """Stays lazy: it commutes with slicing rows, or matrices of a stack."""
    parts = [p for p in (codes, scale, overall) if p is not None]
    function = partial(torch.ops.moec.dequantize_float, format=format, dtype=dtype)
    return (
        rowwise("dequantize_float", function, *parts)
        if all(isinstance(p, Weight) for p in parts)
        else function(*map(_loaded, parts))
    )


def _cat(parts: list[Any], dim: int = 0) -> Any:
    """Stays lazy along the leading dimension."""
    lazy = dim == 0 and all(isinstance(p, Weight) for p in parts)
    return concat(parts, 0) if lazy else torch.cat([_loaded(p) for p in parts], dim)


def _index_select(weight: Any, dim: int, index: Any) -> Any:
    """Stays lazy along the leading dimension: rows in another order."""
    if dim == 0 and isinstance(weight, Weight):
        return taken(weight, _loaded(index).tolist())
    return torch.index_select(_loaded(weight), dim, _loaded(index))


def moe_output(call: MoeCall) -> Tensor:
    """What a block yields for values, with one expert's matrices in memory at a time."""
    expert = lazy_expert(call.w_in, call.w_out, call.b_in, call.b_out, call.activation)
    weights, ids = call.weights, call.ids
    if call.routing is not None:
        logits = router_logits(call.x, call.router, call.router_bias)
        weights, ids = route_reference(logits, _loaded(call.selection_bias), call.routing)
    return experts_reference(_loaded(call.x), ids, weights, expert, call.experts, call.score_before)


def router_logits(x: Tensor, router: Any, bias: Any) -> Tensor:
    """The logits `[..., E]` of a `moec::moe` node, in float32 or wider as the operator defines them."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(exact), _loaded(router).to(exact), None if bias is None else _loaded(bias).to(exact))


def lazy_expert(
    w_in: Any, w_out: Any, b_in: Any, b_out: Any, activation: Activation
) -> Callable[[int, Tensor], Tensor]:
    """The function of one expert whose matrices are read when it is called; tensors are taken as they are."""

    def row(weight: Any, e: int) -> Tensor | None:
        if weight is None:
            return None
        return weight.read(e, e + 1)[0] if isinstance(weight, Weight) else weight[e]

    def expert(e: int, rows: Tensor) -> Tensor:
        hidden = activation(F.linear(rows, row(w_in, e), row(b_in, e)))  # type: ignore[arg-type]
        return F.linear(hidden, row(w_out, e), row(b_out, e))  # type: ignore[arg-type]

    return expert


_HANDLERS: dict[Any, Handler] = {
    torch.ops.aten.cat.default: _cat,
    torch.ops.aten.embedding.default: _embedding,
    torch.ops.aten.index_select.default: _index_select,
    torch.ops.aten.linear.default: _linear,
    torch.ops.moec.dequantize.default: _dequantize,
    torch.ops.moec.dequantize_float.default: _dequantize_float,
}
