"""A part of an engine run alone: the same file, cut before one value and after another.

Names of the model's own values don't survive the lowering, so a value is found by its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.backends.onnxruntime.session.intermediates import FOLDER, intermediates
from moec.backends.onnxruntime.session.opening import Start

Part = Callable[[Tensor], Tensor]


def part(path: Path, start: Start, inputs: Mapping[str, Tensor], x: Tensor, y: Tensor, within: float) -> Part | None:
    """What an engine computes between two values.

    Args:
        path: the model file. start: opens a session of a graph's bytes, see `opening`.
        inputs: a sample. x, y: the two values for it, as the program has them, in any shape.
        within: how far the engine's own values may be from these, as max |d|/std.

    Returns:
        A function from numbers in x's place, in its shape, to the ones in y's place; None where no value of the file
        has the numbers of one of them.
    """
    import onnx

    found = intermediates(path, start, inputs)
    model = onnx.load(str(path), load_external_data=False)
    for end in reversed([name for name, value in found.items() if _equal(value, y, within)]):
        before = _before(model.graph, end)
        starts = [n for n, value in found.items() if n in before and n != end and _equal(value, x, within)]
        if starts:
            cut = _cut(model, starts[0], end)
            return _runner(cut, path, start, inputs, found[starts[0]], starts[0], y)
    return None


def _equal(value: Tensor, wanted: Tensor, within: float) -> bool:
    if value.numel() != wanted.numel() or value.shape[-1:] != wanted.shape[-1:]:
        return False
    wanted, value = wanted.double().flatten(), value.double().flatten()
    return bool((value - wanted).abs().max() <= within * wanted.std(correction=0))


def _needs(node: Any) -> Iterator[str]:
    """The values that a node reads, those of the graphs inside it too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                yield from _needs(inner)
            yield from (output.name for output in graph.output)


def _before(graph: Any, value: str) -> set[str]:
    """All values that one hangs on, itself among them."""
    producers = {name: node for node in graph.node for name in node.output if name}
    seen, todo = {value}, [value]
    while todo:
        node = producers.get(todo.pop())
        new = set(_needs(node)) - seen if node is not None else set()
        seen |= new
        todo += new
    return seen


def _cut(model: Any, start: str, end: str) -> Any:
    """The file's graph from one value on to another; the start is an input, the end the only output."""
    import onnx

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    for node in graph.node:
        for k, name in enumerate(node.output):
            if name == start:
                node.output[k] = f"{start}.before"
    needed = _before(graph, end)
    nodes = [node for node in graph.node if needed & set(node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    for kind in ("initializer", "input"):
        kept = [entry for entry in getattr(graph, kind) if entry.name in needed]
        getattr(graph, kind).__delitem__(slice(None))
        getattr(graph, kind).extend(kept)
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=end))
    return cut


def _runner(
    cut: Any, path: Path, start: Start, inputs: Mapping[str, Tensor], like: Tensor, name: str, y: Tensor
) -> Part:
    import onnx

    kinds = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16,
             torch.float64: onnx.TensorProto.DOUBLE}  # fmt: skip
    cut.graph.input.append(onnx.helper.make_tensor_value_info(name, kinds[like.dtype], [None] * like.dim()))
    session = start(cut.SerializeToString(), {FOLDER: str(path.parent)})
    wanted = {i.name for i in session.get_inputs()}
    feeds = {i: value.numpy(force=True) for i, value in inputs.items() if i in wanted}

    def run(x: Tensor) -> Tensor:
        given = {**feeds, name: x.reshape(like.shape).to(like.dtype).numpy(force=True)}
        return torch.from_numpy(session.run(None, given)[0]).reshape(y.shape)

    return run
