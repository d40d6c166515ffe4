"""A graph that torch.onnx can translate as it is, so that it need not be traced through every decomposition once more.

torch.onnx runs `ExportedProgram.run_decompositions` on all it gets: the program is made functional and traced twice,
which takes half of an export. A program of moec is functional already and nearly always made of operators that
torch.onnx has translations for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch._prims_common import is_contiguous_or_false
from torch.export import ExportedProgram

aten = torch.ops.aten
_CONVERSIONS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default)
_BITWISE = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
}
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def settle(exported: ExportedProgram) -> ExportedProgram:
    """The program with conversions, reshapes and bitwise operators as torch.export's decompositions write them, in
    place. It answers `run_decompositions` with itself where there is nothing left to decompose, else as ever."""
    for node in list(exported.graph.nodes):
        if node.target in _CONVERSIONS:
            _settle_conversion(exported, node)
        elif node.target is aten.reshape.default:
            _settle_reshape(node)
        elif node.target is aten.flatten.using_ints:
            _settle_flatten(node)
        elif node.target is aten.chunk.default:
            _settle_chunk(node)
        elif node.target in _BITWISE:
            node.target = _BITWISE[node.target]
        elif node.target is aten.dropout.default and node.args[2] is False:
            _leave_out(exported, node)
    _part_outputs(exported)
    exported.graph.eliminate_dead_code()
    exported.graph_module.recompile()
    decompose: Callable[..., ExportedProgram] = exported.run_decompositions

    def run_decompositions(decomp_table: Any = None, **how: Any) -> ExportedProgram:
        settled = (
            decomp_table is not None and not how and all(is_settled(n, decomp_table) for n in exported.graph.nodes)
        )
        return exported if settled else decompose(decomp_table, **how)

    exported.run_decompositions = run_decompositions  # type: ignore[method-assign]
    return exported


def _settle_conversion(exported: ExportedProgram, node: fx.Node) -> None:
    """A conversion to the tensor's own dtype goes, any other becomes `_to_copy`; a program knows no devices."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    if x.meta["val"].dtype == node.meta["val"].dtype:
        _leave_out(exported, node)
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (x,), {"dtype": node.meta["val"].dtype}


def _settle_reshape(node: fx.Node) -> None:
    """A reshape becomes a view, of a copy where the tensor's elements do not lie in order."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    value = x.meta["val"]
    if not is_contiguous_or_false(value):
        with node.graph.inserting_before(node):
            copy = node.graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
        copy.meta = {**node.meta, "val": value.clone(memory_format=torch.contiguous_format)}
        node.args = (copy, *node.args[1:])
    node.target = aten.view.default


def _settle_flatten(node: fx.Node) -> None:
    """A flattening of fixed sizes behind the first becomes a reshape, and that a view."""
    sizes = list(node.meta["val"].shape)
    if all(isinstance(size, int) for size in sizes[1:]):
        node.target, node.args = aten.reshape.default, (node.args[0], [-1, *sizes[1:]])
        _settle_reshape(node)


def _settle_chunk(node: fx.Node) -> None:
    """Chunks of a dimension of fixed size become a split."""
    x, chunks, dim = (*node.args, 0)[:3]
    assert isinstance(x, fx.Node) and isinstance(chunks, int)
    size = x.meta["val"].shape[dim]
    if isinstance(size, int) and size:
        node.target, node.args, node.kwargs = aten.split.Tensor, (x, -(-size // chunks), dim), {}


def _leave_out(exported: ExportedProgram, node: fx.Node) -> None:
    """Take out a node that gives its first argument, from the outputs of the program's signature too."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    for spec in exported.graph_signature.output_specs:
        if spec.arg.name == node.name:
            spec.arg.name = x.name
    node.replace_all_uses_with(x)
    exported.graph.erase_node(node)


def _part_outputs(exported: ExportedProgram) -> None:
    """Copy what is an output for the second time, or an input too: a value of ONNX has one name."""
    output, found = exported.graph.output_node(), list[Any]()
    for value, spec in zip(output.args[0], exported.graph_signature.output_specs, strict=True):  # type: ignore[arg-type]
        if isinstance(value, fx.Node) and (value in found or value.op == "placeholder"):
            with exported.graph.inserting_before(output):
                copy = exported.graph.call_function(aten.clone.default, (value,))
            copy.meta, spec.arg.name, value = dict(value.meta), copy.name, copy
        found.append(value)
    output.args = (tuple(found),)


def is_settled(node: fx.Node, table: Collection[Any]) -> bool:
    """Whether decomposing would leave a node as it is: `table` has no rule for it, it writes nothing in place, and no
    composite operator of torch is in it but such as stay whole."""
    target = node.target
    if node.op != "call_function":
        return node.op != "get_attr"  # a graph within the graph
    if not isinstance(target, torch._ops.OpOverload):
        return not isinstance(target, torch._ops.HigherOrderOperator)
    if target in table or target._schema.is_mutable:
        return False
    whole = target is not aten.dropout.default and all(a.alias_info is None for a in target._schema.arguments)
    return whole or not target.has_kernel_for_dispatch_key(_COMPOSITE)
