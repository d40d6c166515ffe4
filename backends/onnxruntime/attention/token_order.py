"""Whether a program says the same of a text wherever its padding stands: then padding can be moved behind the tokens.

A kernel that keeps a cache reads each row from its first place on. So rows are shifted once, where tokens enter the
graph, and shifted back where they leave it, see `compact`. That is right if nothing but attention looks from one token
at another, and if all that is said of a token's place comes from the mask, and from its own text's part of it. The
first is looked up in the graph, operator by operator, the second by computing what the mask determines for masks with
padding everywhere. A number for all texts at once, such as the largest position, is refused wherever it comes from: it
changes when a batch runs text by text, and perhaps only at lengths that nobody tries.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.streaming import StreamingInterpreter
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, is_present
from moec.program.program import Program

# of each token by itself, whatever the dimension
_BY_ELEMENT = set(
    """add sub rsub mul div neg abs pow square sqrt rsqrt reciprocal exp exp2 log log2 log1p tanh sigmoid
    silu gelu relu relu6 leaky_relu elu mish softplus hardsigmoid hardswish hardtanh erf sin cos clamp clamp_min
    clamp_max where to _to_copy type_as contiguous clone detach detach_ alias lift_fresh_copy dropout feature_dropout
    maximum minimum eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not __and__
    __or__ masked_fill zeros_like ones_like full_like new_zeros new_ones new_full floor round sign isnan isinf
    nan_to_num remainder dequantize dequantize_float""".split()  # noqa: SIM905  # a column of names
)
# along dimensions that the call names, by the place of that argument
_ALONG = {"softmax": 1, "_softmax": 1, "log_softmax": 1, "mean": 1, "sum": 1, "amax": 1, "amin": 1, "max": 1, "min": 1,
          "any": 1, "all": 1, "prod": 1, "argmax": 1, "argmin": 1, "norm": 2, "topk": 2, "sort": 1, "argsort": 1,
          "cumsum": 1, "var": 1, "std": 1, "logsumexp": 1, "linalg_vector_norm": 2, "gather": 1, "scatter": 1,
          "scatter_add": 1, "slice": 1, "select": 1, "narrow": 1, "chunk": 2, "split": 2, "split_with_sizes": 2,
          "unbind": 1, "cat": 1, "stack": 1, "index_select": 1, "glu": 1, "roll": 2, "flip": 1}  # fmt: skip
_AROUND = {"view", "reshape", "_unsafe_view", "unflatten", "flatten", "transpose", "permute", "unsqueeze", "squeeze",
           "expand", "t", "movedim"}  # fmt: skip
_OWN = {"moe", "experts", "route"}  # of the dialect, of each token by itself
_LAST = {"layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm"}
_ATTENTION = torch.ops.moec.attention.default
_END = 2**63 - 1  # where a slice has no end


class Part:
    """Some values of a program, computed for given inputs; weights are read where these need them."""

    def __init__(self, program: Program) -> None:
        self._program, self._run = program, StreamingInterpreter(program)
        self._run.garbage_collect_values = False
        self._nodes = {node.name: node for node in self._run.graph.nodes}

    def __call__(self, names: Sequence[str], mask: Tensor, new: int) -> list[Tensor]:
        """The values of these nodes for a mask `[B, T]`, of whose places `new` are the call's; tokens and caches are
        zeros."""
        self._run.env = {}
        self._run.args_iter = iter(self._inputs(mask, new))
        wanted = [self._nodes[name] for name in names]
        needed = _behind(wanted)
        with torch.inference_mode():
            for node in self._run.graph.nodes:
                if node in needed or node.op == "placeholder":
                    self._run.env[node] = self._run.run_node(node)
        return [self._run.env[node] for node in wanted]

    def _inputs(self, mask: Tensor, new: int) -> Iterator[Tensor]:
        sizes = {"batch": mask.shape[0], "sequence": new, PAST: mask.shape[1] - new}
        for spec in self._program.inputs:
            yield mask if spec.name == MASK else torch.zeros((), dtype=spec.dtype).expand(spec.resolve(sizes))


def _behind(wanted: Sequence[fx.Node]) -> set[fx.Node]:
    found, todo = set(wanted), list(wanted)
    while todo:
        before = set(todo.pop().all_input_nodes) - found
        found |= before
        todo += before
    return found


def masks(past: int, new: int) -> Tensor:
    """Masks `[6, past + new]` with padding on the left, on the right, on both sides and between tokens; one without."""
    mask = torch.ones((6, past + new), dtype=torch.int64)
    mask[1, : max(1, (past + new) // 3)] = 0
    mask[2, past + (new + 1) // 2 :] = 0
    mask[3, :1], mask[3, past + max(1, new - 1) :] = 0, 0
    mask[4, 1::3] = 0
    mask[5, past : past + new // 2] = 0
    mask[5, past // 2 : past // 2 + 1] = 0
    return mask


def compacted(mask: Tensor, new: int) -> tuple[Tensor, Tensor]:
    """The mask as it is when the call's tokens stand before its padding, and which of them stands where
    `[B, new]`."""
    order = mask[:, mask.shape[1] - new :].argsort(dim=1, descending=True, stable=True)
    return torch.cat([mask[:, : mask.shape[1] - new], mask[:, mask.shape[1] - new :].gather(1, order)], 1), order


def why_order_matters(program: Program) -> str:
    """Why padding cannot be moved behind a call's tokens; empty where it can."""
    names = [i.name for i in program.inputs]
    if names[0] != IDS or MASK not in names or LOGITS not in program.outputs:
        return "no decoder of tokens and a mask"
    if not all(o == LOGITS or is_present(o) for o in program.outputs):
        return "outputs beside logits and the cache"
    ids = next(node for node in program.graph.nodes if node.op == "placeholder")
    tokens, read = {ids}, dict[fx.Node, None]()
    for node in program.graph.nodes:
        of_tokens = [n for n in node.all_input_nodes if n in tokens]
        if node.op != "call_function" or not of_tokens or not _is_tensor(node):
            continue
        tokens.add(node)
        if node.target is _ATTENTION or _joins_cache(node):
            continue
        if not _by_token(node, tokens):
            return f"{getattr(node.target, '__name__', node.target)} looks from one token at another"
        read |= dict.fromkeys(n for n in node.all_input_nodes if n not in tokens and _is_met(n, node))
    mask = [node for node in program.graph.nodes if node.op == "placeholder"][names.index(MASK)]
    common = _common(list(read), mask, mask.meta["val"].shape[0])
    if common is not None:
        return f"{common.name} is one number for all texts"
    return _why_places_matter(Part(program), [n for n in read if _counts_tokens(n)], ids.meta["val"].shape[1])


def _is_met(node: fx.Node, reader: fx.Node) -> bool:
    """Whether a reader computes with a value, and does not only take it for a size."""
    if isinstance(node.meta.get("val"), Tensor):
        return node.op != "get_attr"
    return _operator(reader) in _BY_ELEMENT


def _operator(node: fx.Node) -> str:
    """An operator's name, whatever its overload."""
    return str(getattr(node.target, "overloadpacket", node.target)).rpartition(".")[2]


def _common(read: Sequence[fx.Node], mask: fx.Node, batch: Any) -> fx.Node | None:
    """A value behind these that says something of all texts of a call together: a size that is computed with, a number
    or a row that was made of an input."""
    sizes = [node for node in read if not isinstance(node.meta["val"], Tensor)]
    given, needed = {mask}, _behind(read)
    for node in (n for n in mask.graph.nodes if n in needed and not given.isdisjoint(n.all_input_nodes)):
        made = node.meta.get("val")
        values = [v for v in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(v, Tensor)]
        if not all(any(_holds(size, batch) for size in value.shape) for value in values):
            return node
        given |= {node} if values else set()
    return sizes[0] if sizes else next((n for n in read if not _counts_tokens(n) and _is_of_input(n)), None)


def _holds(size: Any, batch: Any) -> bool:
    """Whether a size is the batch, or a multiple of it."""
    return str(batch) in re.findall(r"\w+", str(size))


def _is_of_input(node: fx.Node) -> bool:
    return any(n.op == "placeholder" for n in _behind([node]))


def _is_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (Tensor, tuple, list))


def _counts_tokens(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and node.op != "get_attr" and not all(isinstance(n, int) for n in value.shape)


def _joins_cache(node: fx.Node) -> bool:
    """Whether keys or values are put behind a cache's, which `kv_cache` takes into the operator or nobody does."""
    if node.target is not torch.ops.aten.cat.default or not isinstance(node.args[0], (list, tuple)):
        return False
    first = node.args[0][0]
    return isinstance(first, fx.Node) and first.op == "placeholder"


def _by_token(node: fx.Node, tokens: set[fx.Node]) -> bool:
    """Whether each token's part of the result comes from that token's part of what goes in."""
    name = _operator(node)
    if node.target is operator.getitem or name in _BY_ELEMENT or name in _OWN:
        return True
    inputs = [n.meta["val"] for n in node.all_input_nodes if n in tokens]
    if name == "embedding":
        return node.args[0] not in tokens
    if name in ("linear", "matmul", "mm", "addmm", "bmm"):
        return _is_product(node, name, tokens)
    if name in _LAST:
        return all(isinstance(size, int) for size in node.args[1])  # type: ignore[union-attr]
    if name == "slice" and node.args[2:] in ((), (0,), (0, _END)):
        return True  # of everything
    if name in _ALONG:
        return all(_is_fixed(v, node, _ALONG[name]) for v in inputs if isinstance(v, Tensor))
    if name in _AROUND:
        return name == "expand" or all(_keeps_rows(v, node.meta["val"], name) for v in inputs)
    return False


def _is_product(node: fx.Node, name: str, tokens: set[fx.Node]) -> bool:
    """Whether rows of tokens meet a matrix that knows none."""
    left, right = (node.args[1], node.args[2]) if name == "addmm" else (node.args[0], node.args[1])
    return left in tokens and right not in tokens and isinstance(left.meta["val"].shape[-1], int)  # type: ignore[union-attr]


def _is_fixed(value: Tensor, node: fx.Node, place: int) -> bool:
    """Whether the dimensions that a call works along have the same size for every batch and length."""
    last = str(node.target).startswith(("aten.topk", "aten.sort", "aten.argsort", "aten.glu"))
    default: Any = -1 if last else None  # a sum over no dimension is over all of them
    along = node.args[place] if len(node.args) > place else node.kwargs.get("dim", default)
    dims = along if isinstance(along, (list, tuple)) else [along]
    return bool(dims) and all(isinstance(d, int) and isinstance(value.shape[d], int) for d in dims)


def _keeps_rows(before: Tensor, after: Tensor, name: str) -> bool:
    """Whether each token keeps its own numbers and rows their order: dimensions for batch and length stay, or become
    one."""
    sizes = [[str(n) for n in v.shape if not isinstance(n, int)] for v in (before, after)]
    ordered = name in ("transpose", "permute", "t", "movedim") or sizes[0] == sizes[1] or 1 in map(len, sizes)
    return ordered and _elements(before) == _elements(after)


def _elements(value: Tensor) -> int:
    """How many numbers belong to one token."""
    count = 1
    for size in value.shape:
        count *= size if isinstance(size, int) else 1
    return count


def _why_places_matter(part: Part, read: list[fx.Node], length: Any) -> str:
    """Whether what tokens meet says the same of a token that was moved."""
    axes = [[k for k, n in enumerate(node.meta["val"].shape) if str(n) == str(length)] for node in read]
    for node, axis in zip(read, axes, strict=True):
        if len(axis) != 1:
            return f"{node.name} knows the places of the tokens"
    for past, new in ((0, 5), (4, 3), (3, 1)) if read else ():
        mask = masks(past, new)
        moved, order = compacted(mask, new)
        given = mask, moved, mask[4:5]
        found = zip(*(part([n.name for n in read], m, new) for m in given), axes, read, strict=True)
        for before, after, alone, (axis,), node in found:
            here, there = (_rows(v, axis, len(mask)) for v in (before, after))
            if not torch.allclose(here[4].float(), _rows(alone, axis, 1)[0].float(), rtol=1e-5, atol=1e-6):
                return f"{node.name} mixes texts"
            here = here.gather(1, order[:, :, None].expand(-1, -1, here.shape[2]))
            real = moved[:, -new:].bool()
            if not torch.allclose(here[real].float(), there[real].float(), rtol=1e-5, atol=1e-6):
                return f"{node.name} is not counted from the mask"
    return ""


def _rows(value: Tensor, axis: int, batch: int) -> Tensor:
    """`[batch, length, numbers]` of a value with the length at an axis, with or without a dimension for the batch."""
    rows = value.movedim(axis, 0).flatten(1) if axis == 0 else value.movedim(axis, 1).flatten(2)
    rows = rows[None] if axis == 0 else rows
    return rows.expand(batch, -1, -1)
