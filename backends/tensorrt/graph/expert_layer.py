"""The experts of one block in standard operators without data-dependent shapes, in one of two forms.

`gathered`: each token's matrices are copied out of the stack and multiplied with it, `[T, K, I, H] x [T, 1, H, 1]`.
`dense`: all experts are one wide hidden layer, `[T, H] -> [T, E * I] -> [T, H]`. Between the two products each expert's
neurons are multiplied by the token's weight for that expert, zero where it was not chosen; the second product then sums
over experts too, so that no `[E, T, H]` is ever there. These are plain products, for which TensorRT has its best
kernels, packed weights included.

Where a graph has both, see `pieces`, they read the same constants: stacks `[E, I, H]` of every matrix, which the wide
products see as `[E * I, H]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from moec.backends.onnx.activation import emit_gated, emit_plain
from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnx.packed import widened
from moec.backends.tensorrt.graph.quantized import emit_weight, unfolded
from moec.errors import MoecError
from moec.weights import lazy
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight

FLOAT = ir.DataType.FLOAT
Part = Callable[[Weight], Weight]


@dataclass
class ExpertLayer:
    """One block while it is emitted.

    Attributes:
        x: tokens `[T, H]`.
        ids, weights: `[T, K]`; weights in float32.
        distinct: whether the graph proves that no token names an expert twice.
        whole: gate and up are one product of one matrix, as moec's kernels read it, under the dialect's names.
        initializers: role -> name of the initializer, for matrices and biases.
        packed: role -> packed matrix, of those that moec's kernels are to read; not in `initializers`.
        unfolded: of each packed matrix, see `quantized.unfolded`.
        both: whether the graph has both forms of the block.
        known: constants that were emitted, by role; several pieces of a call read them.
    """

    emit: Emitter
    block: MoeNode
    x: ir.Value
    ids: ir.Value
    weights: ir.Value
    distinct: bool
    whole: bool = False
    initializers: dict[str, str] = field(default_factory=dict)
    packed: dict[str, PackedWeight] = field(default_factory=dict)
    unfolded: list[str] = field(default_factory=list)
    both: bool = False
    known: dict[str, ir.Value] = field(default_factory=dict)

    @classmethod
    def of(cls, emit: Emitter, block: MoeNode, distinct: bool, whole: bool = False) -> ExpertLayer:
        assert block.ids is not None and block.weights is not None
        width = emit.constant([-1, block.top_k])
        weights = emit.cast(emit("Reshape", block.weights, width), block.weights.dtype or block.dtype, FLOAT)
        return cls(
            emit,
            block,
            emit("Reshape", block.x, emit.constant([-1, block.hidden])),
            emit("Reshape", block.ids, width),
            weights,
            distinct,
            whole,
        )

    @property
    def roles(self) -> list[tuple[str, Part]]:
        """The products of the first layer: gate and up, or one that is called up; and which rows of its stack each
        has."""
        inner = self.block.w_out.shape[2]
        if self.whole or not self.block.activation.gated:
            return [("up", lambda w: w)]
        return [("gate", lambda w: _rows(w, 0, inner)), ("up", lambda w: _rows(w, inner, 2 * inner))]

    def activate(self, hidden: list[ir.Value]) -> ir.Value:
        """The activation of what the first layer's products gave; a product of both has gates before ups along the axis
        of neurons, 2."""
        rule, dtype = self.block.activation, self.block.dtype
        if rule.gated and self.whole:
            first, middle, end, axis = (
                self.emit.constant([n]) for n in (0, self.block.w_out.shape[2], 2 * self.block.w_out.shape[2], 2)
            )
            hidden = [self.emit("Slice", hidden[0], *ends, axis) for ends in ((first, middle), (middle, end))]
        return (
            emit_gated(self.emit, rule, hidden[0], hidden[1], dtype)
            if rule.gated
            else emit_plain(self.emit, rule, hidden[0], dtype)
        )

    def matrix(self, weight: Weight | PackedWeight, role: str, part: Part, wide: Part | None = None) -> ir.Value:
        """A weight, or rows of every expert's, as the graph reads it: `[E, N, D]`, or as `wide` makes it of that."""
        role = {"up": "w_in", "down": "w_out"}[role] if self.whole else role
        if wide is None or self.both:
            return self._once(role, lambda: self._matrix(weight, role, part), wide is not None)
        return self._once(role, lambda: self._matrix(weight, role, lambda w: wide(part(w))))

    def _matrix(self, weight: Weight | PackedWeight, role: str, part: Part) -> ir.Value:
        own = weight.each(part) if isinstance(weight, PackedWeight) else part(weight)
        value = emit_weight(self.emit, own, role)
        self.unfolded.append(unfolded(value, own))
        if self.whole and isinstance(weight, PackedWeight):
            self.packed[role] = widened(weight, max(weight.bits, 4))
        else:
            self.initializers[role] = str(value.name)
        return value

    def bias(self, weight: Weight, role: str, wide: bool = False) -> ir.Value:
        """A bias `[E, N]` as an initializer; `[E * N]` if it is to be `wide`."""
        name = {"up": "b_in", "down": "b_out"}[role] if self.whole else f"{role}.bias"
        own = _flat(weight) if wide and not self.both else weight
        value = self._once(name, lambda: self.emit.weight(own, name), wide and self.both)
        self.initializers[name] = str(self.known[name].name)
        return value

    def _once(self, name: str, make: Callable[[], ir.Value], flat: bool = False) -> ir.Value:
        """A constant that is emitted when it is first asked for; `flat` has its first two dimensions as one."""
        if name not in self.known:
            self.known[name] = make()
        if flat and f"{name}.flat" not in self.known:
            whole = self.known[name]
            assert whole.shape is not None
            width = [-1, *whole.shape.numpy()[2:]]
            self.known[f"{name}.flat"] = self.emit("Reshape", whole, self.emit.constant(width))
        return self.known[f"{name}.flat" if flat else name]

    def to(self, value: ir.Value, have: ir.DataType, want: ir.DataType) -> ir.Value:
        return self.emit.cast(value, have, want)


def _rows(weight: Weight, start: int, stop: int) -> Weight:
    """Rows of every expert's matrix, or numbers of its bias: `[E, F*I, …]` to `[E, stop - start, …]`."""
    return lazy.rowwise(f"rows[{start}:{stop}]", lambda t: t[:, start:stop].contiguous(), weight)


# ---------------------------------------------------------------------- gathered
def gathered(layer: ExpertLayer) -> ir.Value:
    """The experts' mixed outputs `[T, H]` in float32, each token's matrices gathered from the stacks."""
    emit, block = layer.emit, layer.block
    x = emit("Reshape", layer.x, emit.constant([-1, 1, block.hidden, 1]))
    factors = emit("Reshape", layer.weights, emit.constant([-1, block.top_k, 1, 1]))
    if block.score_before:
        x = layer.to(emit("Mul", layer.to(x, block.dtype, FLOAT), factors), FLOAT, block.dtype)
    hidden = []
    for role, part in layer.roles:
        product = emit("MatMul", emit("Gather", layer.matrix(block.w_in, role, part), layer.ids, axis=0), x)
        hidden.append(product if block.b_in is None else _add_own(layer, product, part(block.b_in), role))
    active, turned = layer.activate(hidden), _turned if layer.both else _same
    down = emit("Gather", layer.matrix(block.w_out, "down", turned), layer.ids, axis=0)
    if layer.both:  # `[T, K, 1, I] x [T, K, I, H]`
        row = emit("Reshape", active, emit.constant([-1, block.top_k, 1, block.w_out.shape[2]]))
        y = emit("Reshape", emit("MatMul", row, down), emit.constant([-1, block.top_k, block.hidden, 1]))
    else:
        y = emit("MatMul", down, active)
    y = layer.to(y if block.b_out is None else _add_own(layer, y, block.b_out, "down"), block.dtype, FLOAT)
    return emit("ReduceSum", y if block.score_before else emit("Mul", y, factors), emit.constant([1, 3]), keepdims=0)


def _add_own(layer: ExpertLayer, product: ir.Value, bias: Weight, role: str) -> ir.Value:
    """Each chosen expert's bias `[E, N]` added to its `[T, K, N, 1]`."""
    emit = layer.emit
    return emit(
        "Add", product, emit("Unsqueeze", emit("Gather", layer.bias(bias, role), layer.ids, axis=0), emit.constant([3]))
    )


# ---------------------------------------------------------------------- dense
def dense(layer: ExpertLayer) -> ir.Value:
    """The same as one wide hidden layer, in the block's dtype, cast to float32 so that both forms end alike. Raises
    M208 where a token might name an expert twice and weights come before the experts."""
    emit, block, inner = layer.emit, layer.block, layer.block.w_out.shape[2]
    chosen = emit("OneHot", layer.ids, emit.constant([block.experts]), emit.constant(_ZERO_ONE), axis=-1)  # [T, K, E]
    mix = emit(
        "ReduceSum",
        emit("Mul", chosen, emit("Unsqueeze", layer.weights, emit.constant([2]))),
        emit.constant([1]),
        keepdims=0,
    )
    open_ = emit("ReduceSum", chosen, emit.constant([1]), keepdims=0) if block.score_before else mix
    if block.score_before and block.top_k > 1 and not layer.distinct:
        fix = "choose experts by a top-k, or take lowering=gathered"
        raise MoecError("M208", "weights come before the experts, and a token might name one twice", emit.name, fix)
    hidden = [_all_experts(layer, role, part, mix) for role, part in layer.roles]
    active = emit("Reshape", layer.activate(hidden), emit.constant([-1, block.experts, inner]))
    share = layer.to(emit("Unsqueeze", open_, emit.constant([2])), FLOAT, block.dtype)
    active = emit("Reshape", emit("Mul", active, share), emit.constant([-1, block.experts * inner]))
    y = _second(layer, active)
    if block.b_out is not None:
        y = emit("Add", y, emit("MatMul", layer.to(open_, FLOAT, block.dtype), layer.bias(block.b_out, "down")))
    return layer.to(y, block.dtype, FLOAT)


_ZERO_ONE = torch.tensor([0.0, 1.0]).numpy()


def _all_experts(layer: ExpertLayer, role: str, part: Part, mix: ir.Value) -> ir.Value:
    """One product of the first layer for every expert, `[T, E * I]`, of both halves `[T, E, 2 * I]`; weights before the
    experts scale it, which is linear, and not its bias."""
    emit, block = layer.emit, layer.block
    inner = block.w_out.shape[2] * (block.activation.rows_per_neuron if layer.whole else 1)
    y = emit("Gemm", layer.x, layer.matrix(block.w_in, role, part, lazy.merged), transB=1)
    if block.score_before:
        apart = emit("Reshape", layer.to(y, block.dtype, FLOAT), emit.constant([-1, block.experts, inner]))
        wide = emit("Mul", apart, emit("Unsqueeze", mix, emit.constant([2])))
        y = layer.to(emit("Reshape", wide, emit.constant([-1, block.experts * inner])), FLOAT, block.dtype)
    y = y if block.b_in is None else emit("Add", y, layer.bias(part(block.b_in), role, wide=True))
    return emit("Reshape", y, emit.constant([-1, block.experts, inner])) if layer.whole else y


def _second(layer: ExpertLayer, active: ir.Value) -> ir.Value:
    """`[T, E * I]` times all second matrices below each other, `[T, H]`."""
    emit, block = layer.emit, layer.block
    if isinstance(block.w_out, PackedWeight):  # its blocks lie along I, so it stays `[out, in]`: [H, E * I]
        return emit("Gemm", active, layer.matrix(block.w_out, "down", _same, _beside), transB=1)
    return emit("MatMul", active, layer.matrix(block.w_out, "down", _turned, lazy.merged))


def _same(weight: Weight) -> Weight:
    return weight


def _turned(weight: Weight) -> Weight:
    """`[E, H, I]` as `[E, I, H]`."""
    return lazy.transpose(weight, 1, 2)


def _beside(weight: Weight) -> Weight:
    """`[E, H, N]` as `[H, E * N]`: the experts' rows beside each other."""
    return lazy.rowwise("flat", lambda t: t.flatten(1), lazy.transpose(weight, 0, 1))


def _flat(weight: Weight) -> Weight:
    """Biases `[E, I]` as `[E * I]`."""
    return lazy.whole("flat", lambda t: t.flatten(), weight)
