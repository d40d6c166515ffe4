"""An ONNX graph as text, without its weights: equal graphs give equal lines, so that two steps of a lowering can be
compared with diff."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.tensors import WeightTensor

SHOWN = 16  # elements of a constant whose numbers are printed


def text_of(model: ir.Model) -> str:
    """Domains, signature, initializers (small constants with their numbers) and nodes in order, one a line; branches
    are indented. Reads no weight."""
    graph = model.graph
    lines = [f"opset {domain or 'ai.onnx'} {version}" for domain, version in model.opset_imports.items()]
    lines += [f"metadata {key} = {text}" for key, text in model.metadata_props.items() if key.startswith("moec.")]
    lines += [f"input {_typed(value)}" for value in graph.inputs]
    lines += [f"output {_typed(value)}" for value in graph.outputs]
    lines += [f"initializer {_typed(value)}{_numbers(value.const_value)}" for value in graph.initializers.values()]
    lines += _nodes(graph, "")
    for function in model.functions.values():
        names = ", ".join(str(value.name) for value in function.inputs)
        lines += [f"function {function.domain}::{function.name}({names})", *_body(function, "  ")]
    return "\n".join(lines) + "\n"


def _body(graph: ir.Graph | ir.Function, indent: str) -> Iterator[str]:
    yield from _nodes(graph, indent)
    yield f"{indent}return {', '.join(str(value.name) for value in graph.outputs)}"


def _nodes(graph: ir.Graph | ir.Function, indent: str) -> Iterator[str]:
    for node in graph:
        results = ", ".join(_typed(value) for value in node.outputs)
        inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
        domain = f"{node.domain}::" if node.domain else ""
        plain = [a for a in node.attributes.values() if a.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)]
        rule = ", ".join(f"{a.name}={_attribute(a.value)}" for a in sorted(plain, key=lambda a: str(a.name)))
        yield f"{indent}{results} = {domain}{node.op_type}({inputs}){f' {{{rule}}}' if rule else ''}"
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield f"{indent}  {attribute.name}:"
                yield from _body(attribute.as_graph(), f"{indent}    ")


def _typed(value: ir.Value) -> str:
    """`name: FLOAT[batch, 32]`, as far as type and shape are known."""
    dtype = "" if value.dtype is None else value.dtype.name
    shape = "" if value.shape is None else f"[{', '.join(_dimension(d) for d in value.shape)}]"
    return f"{value.name}: {dtype}{shape}" if dtype or shape else str(value.name)


def _dimension(size: Any) -> str:
    return str(size) if isinstance(size, int) else str(size.value or "?")


def _numbers(tensor: Any) -> str:
    """` = [1, 2]` of a small constant; nothing of a weight."""
    if tensor is None or isinstance(tensor, WeightTensor) or tensor.size > SHOWN:
        return ""
    return f" = {tensor.numpy().tolist()}"


def _attribute(value: Any) -> str:
    if isinstance(value, ir.TensorProtocol):
        return f"{value.dtype.name}{list(value.shape.numpy())}{_numbers(value)}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
