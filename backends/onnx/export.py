"""From a Program to an ONNX graph in memory: torch.onnx translates ATen, moec's own operators stay opaque nodes of
domain `moec`.

Nothing is loaded: the program is traced again on the meta device and every initializer is a lazy `WeightTensor`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from moec.backends.onnx.opaque_nodes import translations
from moec.backends.onnx.settled import settle
from moec.backends.onnx.shortened import shortened
from moec.backends.onnx.size_arithmetic import name_fractions, size_translations
from moec.backends.onnx.tensors import WeightTensor
from moec.dialect import Activation, Capacity, Routing, route_reference
from moec.errors import MoecError
from moec.frontend.export import shapes_worked_out
from moec.frontend.stored_program import retrace
from moec.program.moe_call import MOE, ROUTE, MoeCall
from moec.program.program import Program, named_size
from moec.version import __version__
from moec.weights.lazy import Weight, rowwise

Keeps = Callable[[Routing, bool, Activation, bool], bool]
TRACE = "pkg.torch.onnx.stack_trace"  # where the exporter notes which lines of the model a node came from


def to_onnx(program: Program, opset: int, keeps: Keeps | None = None) -> ir.Model:
    """The program as an ONNX model with lazy initializers and opaque nodes of domain `moec`; each node still knows the
    model's line, see `source_line`.

    Args:
        program: what to export.
        opset: version of the standard domain.
        keeps: whether a `moec::moe` stays one `Moe` node, given its routing, whether it has a selection bias, its
            activation, and whether weights come before the experts. Any other, and without `keeps` every one, becomes
            plain routing and an `Experts` node.

    Raises:
        MoecError: M208 when torch.onnx has no translation for an operator of the program.
    """
    exported, own = settle(_trace(program, keeps)), translations() | size_translations()
    with _quiet(), shapes_worked_out(), shortened(exported, opset, own):
        try:
            onnx_program = torch.onnx.export(
                exported, optimize=False, opset_version=opset, custom_translation_table=own, verbose=False,
                input_names=[i.name for i in program.inputs], output_names=list(program.outputs),
            )  # fmt: skip
        except Exception as error:
            reason = _root_cause(error)
            raise MoecError(
                "M208",
                f"torch.onnx cannot translate the program: {reason}",
                "export to ONNX",
                "report the operator; `moec inspect` shows where it is used",
            ) from error
    assert onnx_program is not None
    model = onnx_program.model
    name_fractions(model.graph)
    _bind_weights(model.graph, program)
    _name_dimensions(model.graph, program)
    return model


# ---------------------------------------------------------------------- tracing
def _trace(program: Program, keeps: Keeps | None) -> torch.export.ExportedProgram:
    module = program.module("meta")
    for node in module.graph.nodes:
        if node.op == "call_function":
            _decompose(node, keeps)
    module.recompile()
    return retrace(program, module)


def _decompose(node: fx.Node, keeps: Keeps | None) -> None:
    """Routing becomes plain ATen by tracing its reference."""
    if node.target is ROUTE:
        node.target = route_plainly
    elif node.target is MOE:
        call = MoeCall(node)
        assert call.routing is not None
        if keeps is None or not keeps(
            call.routing, call.selection_bias is not None, call.activation, call.score_before
        ):
            node.target = route_then_experts
    elif node.target is torch.ops.aten.unsqueeze.default and node.meta["val"].is_complex():
        node.target = unsqueeze_complex
    elif node.target is torch.ops.aten.repeat_interleave.self_int:
        node.target = repeat_each


def route_plainly(
    logits: Tensor, bias: Tensor | None = None, capacity: int | None = None, counted: Tensor | None = None, **rule: Any
) -> tuple[Tensor, Tensor]:
    """`moec::route` as plain ATen when traced."""
    return route_reference(logits, bias, Routing.of(rule), Capacity.of(capacity, counted, rule))


def route_then_experts(
    x: Tensor,
    router_weight: Tensor,
    router_bias: Tensor | None,
    selection_bias: Tensor | None,
    *weights: Tensor | None,
    **rule: Any,
) -> Tensor:
    """`moec::moe` as a linear layer, plain routing and `moec::experts` when traced."""
    f32 = torch.float32
    logits = F.linear(x.to(f32), router_weight.to(f32), None if router_bias is None else router_bias.to(f32))
    mixing, ids = route_reference(logits, selection_bias, Routing.of(rule))
    activation, before = Activation.of(rule).arguments(), rule.get("score_before", False)
    return torch.ops.moec.experts(x, ids, mixing.to(x.dtype), *weights, **activation, score_before=before)  # type: ignore[no-any-return]


def unsqueeze_complex(x: Tensor, dim: int) -> Tensor:
    """`unsqueeze` of a complex tensor, which torch.onnx has only for its real view (rotary embeddings of DeepSeek-V2
    and Llama 4)."""
    return torch.view_as_complex(torch.view_as_real(x).unsqueeze(dim if dim >= 0 else dim - 1))


def repeat_each(x: Tensor, repeats: int, dim: int | None = None, output_size: int | None = None) -> Tensor:
    """`repeat_interleave` with all sizes said: torch.onnx leaves one of them to be found, which nothing can do in a
    tensor without elements."""
    if dim is None:
        x, dim = x.reshape(-1), 0
    dim, shape = dim % x.dim(), list(x.shape)
    wide = x.unsqueeze(dim + 1).expand(*shape[: dim + 1], repeats, *shape[dim + 1 :])
    return wide.reshape(*shape[:dim], shape[dim] * repeats, *shape[dim + 1 :])


# ---------------------------------------------------------------------- after translation
def _bind_weights(graph: ir.Graph, program: Program) -> None:
    """Give every initializer its lazy weight; names that share a weight share one initializer."""
    first: dict[int, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        weight = program.weights.get(name)
        if weight is None:
            continue  # a constant that tracing made, with its value in it
        if id(weight) in first:
            ir.convenience.replace_all_uses_with(value, first[id(weight)])
            del graph.initializers[name]
        else:
            first[id(weight)] = value
            value.const_value = WeightTensor(_in_pairs(weight), name)


def _in_pairs(weight: Weight) -> Weight:
    """A complex weight, a table of turns, as torch.onnx has it: real and imaginary part beside each other."""
    return rowwise("view_as_real", torch.view_as_real, weight) if weight.dtype.is_complex else weight


def _name_dimensions(graph: ir.Graph, program: Program) -> None:
    """Write the program's own names of dynamic dimensions into the signature, where the exporter has symbols and sums
    of symbols."""
    names: dict[str, str] = {}
    for value, spec in zip(graph.inputs, program.inputs, strict=True):
        names |= {
            _text(old): new for old, new in zip(value.shape or (), spec.shape, strict=True) if isinstance(new, str)
        }
        value.shape = ir.Shape(spec.shape)
    for value in graph.outputs:
        value.shape = ir.Shape([d if isinstance(d, int) else named_size(_text(d), names) for d in value.shape or ()])


def _text(dim: int | ir.SymbolicDim) -> str:
    return str(dim if isinstance(dim, int) else dim.value)


def source_line(node: ir.Node) -> str:
    """The innermost line of the model that a node came from, as `modeling_mixtral.py:133`; empty when nothing says so.
    No path of this machine."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.metadata_props.get(TRACE, ""))
    return f"{PurePath(found[-1][0]).name}:{found[-1][1]}" if found else ""


def strip_traces(model: ir.Model) -> None:
    """Drop the exporter's stack traces: they hold paths of this machine, and equal inputs must make equal files."""
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "moec", __version__
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx prints progress and warns about our operators' missing signatures; neither is news for a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
