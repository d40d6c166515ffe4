"""Weights rounded to nearest, for tests of engines that read packed bytes; in ONNX models of one node and in captured
programs."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from moec.backends.onnx.tensors import add_initializer, weight_of
from moec.dialect import pack
from moec.program.program import Program
from moec.weights.lazy import from_tensor
from moec.weights.widths import ExpertWidths


def rounded(weight: Tensor, bits: int, block: int, zeros: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """packed, scale and zero of a weight `[..., out, in]`."""
    parts, top = weight.float().unflatten(-1, (-1, block)), 2**bits - 1
    if zeros:
        low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / top).clamp(min=1e-8)
        zero = (-low / scale).round().clamp(0, top)
    else:
        scale = (parts.abs().amax(-1, keepdim=True) / 2 ** (bits - 1)).clamp(min=1e-8)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    q = (parts / scale + zero).round().clamp(0, top).flatten(-2)
    return pack(q, bits), scale[..., 0].to(weight.dtype), zero[..., 0].to(torch.uint8) if zeros else None


def meant(parts: tuple[Tensor, Tensor, Tensor | None], bits: int) -> Tensor:
    """The weight that they stand for."""
    return torch.ops.moec.dequantize(*parts, bits=bits)  # type: ignore[no-any-return]


def quantize_model(model: ir.Model, names: list[str], bits: int, block: int, zeros: bool) -> dict[str, Tensor]:
    """Put `moec::Dequantize` nodes where initializers stood, in place; returns what they stand for."""
    found = {}
    for name in names:
        old = model.graph.initializers[name]
        weight = weight_of(old)
        assert weight is not None
        parts = rounded(weight.load(), bits, block, zeros)
        found[name] = meant(parts, bits)
        operands = [
            add_initializer(model.graph, from_tensor(t, f"{name}.{k}"), f"{name}.{k}")
            for t, k in zip(parts, KINDS, strict=True)
            if t is not None
        ]
        node = ir.node("Dequantize", operands, {"bits": bits}, domain="moec", name=f"{name}.dequantize")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"{name}.value", old.type, old.shape
        model.graph.insert_before(model.graph[0], node)
        ir.convenience.replace_all_uses_with(old, node.outputs[0])
        model.graph.initializers.pop(name)
    model.graph.opset_imports["moec"] = 1
    return found


def mix(
    model: ir.Model, e: Any, bits: tuple[int, ...], block: int, zeros: bool, names: tuple[str, ...] = ("w_in", "w_out")
) -> None:
    """Put the expression of several widths where stacks stood, in place; `e` gets the numbers that it stands for."""
    mixture = ExpertWidths(bits)
    for name in names:
        old, value = model.graph.initializers[name], getattr(e, name)
        dequantized, numbers = [], torch.empty_like(value)
        for width, which in mixture.parts:
            parts = rounded(value[list(which)], width, block, zeros)
            numbers[list(which)] = meant(parts, width)
            given = {
                f"{name}.{width}.{k}": from_tensor(t, k) for t, k in zip(parts, KINDS, strict=True) if t is not None
            }
            operands = [add_initializer(model.graph, weight, title) for title, weight in given.items()]
            dequantized.append(ir.node("Dequantize", operands, {"bits": width}, domain="moec", name=f"{name}.{width}"))
        joined = ir.node("Concat", [n.outputs[0] for n in dequantized], {"axis": 0}, name=f"{name}.joined")
        order = add_initializer(model.graph, from_tensor(torch.tensor(mixture.order), "order"), f"{name}.order")
        gathered = ir.node("Gather", [joined.outputs[0], order], {"axis": 0}, name=f"{name}.gathered")
        for node in [*dequantized, joined, gathered]:
            node.outputs[0].name, node.outputs[0].type = f"{node.name}.value", old.type
        gathered.outputs[0].shape = old.shape
        model.graph.insert_before(model.graph[0], [*dequantized, joined, gathered])
        ir.convenience.replace_all_uses_with(old, gathered.outputs[0])
        model.graph.initializers.pop(name)
        setattr(e, name, numbers)


def quantize_program(program: Program, bits: int, block: int, zeros: bool, only: str = "") -> int:
    """Put `moec::dequantize` where a program reads float matrices whose names hold `only`, in place; returns how
    many."""
    reads = [n for n in program.graph.nodes if n.op == "get_attr" and only in str(n.target)]
    reads = [
        n
        for n in reads
        if len(program.weights[n.target].shape) >= 2 and program.weights[n.target].dtype.is_floating_point
    ]
    done: dict[int, fx.Node] = {}  # a tied weight stays one
    for node in reads:
        weight = program.weights[node.target]
        if id(weight) not in done:
            parts = rounded(weight.load(), bits, block, zeros)
            with program.graph.inserting_before(node):
                inputs = [
                    None if t is None else _read(program, f"{node.target}_{k}", t)
                    for t, k in zip(parts, KINDS, strict=True)
                ]
                new = done[id(weight)] = program.graph.call_function(
                    torch.ops.moec.dequantize.default, tuple(inputs), {"bits": bits}
                )
                new.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(done[id(weight)])
    program.finish()
    return len(done)


def _read(program: Program, name: str, tensor: Tensor) -> fx.Node:
    return program.read_weight(program.add_weight(name, from_tensor(tensor, name)))


KINDS = ("packed", "scale", "zero")
