"""From an exported program, a `.pt2` too, to a Program: its graph, its weights, names of what goes in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from moec.errors import MoecError
from moec.frontend.assumed import assume
from moec.frontend.looked_up import values_of
from moec.frontend.randomness import refuse_random
from moec.program.functional import functionalize
from moec.program.original import Original, OutputForm, Place
from moec.program.program import META, Input, Program, attach, identifier, place
from moec.weights.lazy import Weight, from_tensor

Dynamic = Mapping[str, Sequence[str | int | None]]

# bookkeeping that torch.export leaves in a graph; none of it computes anything, and what it states of sizes becomes
# conditions of the program
_ASSERTS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
)


def from_exported(
    exported: ExportedProgram,
    *,
    weights: Mapping[str, Weight] | None = None,
    dynamic: Dynamic | None = None,
    source: str = "exported program",
    inputs: Mapping[str, Tensor] | None = None,
) -> Program:
    """Bring an `ExportedProgram` (a `.pt2` too) into the form that `Program` documents. Raises M207 for what no graph
    holds."""
    _refuse_taken_names(exported, source)
    graph_module = exported.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    names = _input_names(exported, list(inputs) if inputs is not None else None)
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    signature = tuple(
        _signature(node, name, (dynamic or {}).get(name)) for node, name in zip(placeholders, names, strict=True)
    )
    form, outputs = _output_form(exported, graph_module)

    graph = fx.Graph()
    table: dict[str, Weight] = {}
    shared: dict[int, Weight] = {}
    mapping: dict[fx.Node, fx.Node] = {}
    root = nn.Module()
    for node in graph_module.graph.nodes:
        if node.target in _ASSERTS or _writes_a_buffer(node):
            continue
        copied = graph.node_copy(node, lambda n: mapping[n])
        mapping[node] = copied
        if node.op == "placeholder":
            copied.target = copied.name = signature[placeholders.index(node)].identifier
            copied.args = ()
        elif node.op == "get_attr":
            tensor = _attribute(graph_module, str(node.target))
            if str(node.target) not in table:
                found = (
                    (weights or {}).get(str(node.target))
                    or shared.get(id(tensor))
                    or _in_memory(tensor, str(node.target))
                )
                table[str(node.target)] = shared[id(tensor)] = found
                attach(root, str(node.target), found.meta())
        elif node.op == "output":
            flat = [a for a in pytree.tree_leaves(copied.args) if isinstance(a, fx.Node)]
            copied.args = (tuple(flat),)
    program = Program(fx.GraphModule(root, place(graph, META)), table, signature, outputs, source)
    learnt = {id(table[name]) for name in exported.graph_signature.parameters if name in table}
    program.original = Original(form, frozenset(name for name, weight in table.items() if id(weight) not in learnt))
    functionalize(program.graph)
    refuse_random(program.graph)
    program.finish()
    program.values = values_of(program.graph, signature)
    assume(program, exported)
    program.check()
    return program


def _refuse_taken_names(exported: ExportedProgram, source: str) -> None:
    """Raise M207 where a part of the model has the name of something that every graph module has, such as `code`."""
    for name in (*exported.state_dict, *exported.constants):
        first = name.partition(".")[0]
        if hasattr(fx.GraphModule, first):
            what = f"the model has a part named {first!r}, and torch's graph modules have something of that name"
            raise MoecError("M207", what, f"{name} of {source}", f"rename it, for example to {first}_")


def _writes_a_buffer(node: fx.Node) -> bool:
    """Whether a node only keeps a value for the next call, in which torch.export ends what a model writes to a buffer:
    an engine remembers nothing, as a model made anew."""
    return node.target is torch.ops.aten.copy_.default and node.args[0].op == "get_attr" and not node.users  # type: ignore[union-attr]


def _attribute(module: nn.Module, name: str) -> Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _in_memory(tensor: Tensor, name: str) -> Weight:
    if not isinstance(tensor, Tensor):
        raise MoecError(
            "M207",
            f"the captured graph holds {type(tensor).__name__}, which is no tensor: something was mapped or nested",
            name,
            "write that part of the model without torch.vmap or a higher-order operator",
        )
    if tensor.device == META:
        raise MoecError(
            "M205", f"no weight for {name!r}, which the graph reads", name, "give the missing tensor in the checkpoint"
        )
    return from_tensor(tensor, name)


def _input_names(exported: ExportedProgram, given: list[str] | None) -> list[str]:
    """Names of the flattened inputs: the keyword or parameter name, with the path inside a nested input appended."""
    if given is not None and len(given) == len(exported.graph_signature.user_inputs):
        return given
    return [str(n).removeprefix("kwargs_").removeprefix("args_") for n in exported.graph_signature.user_inputs]


def _signature(node: fx.Node, name: str, dims: Sequence[str | int | None] | None) -> Input:
    value = node.meta["val"]
    require_tensor(name, value)
    shape: list[int | str] = []
    for i, size in enumerate(value.shape):
        given = dims[i] if dims is not None and i < len(dims) else None
        if isinstance(given, str) and isinstance(size, int):
            raise MoecError(
                "M207",
                f"the model fixes dimension {given!r} at {size}",
                f"input {name!r}",
                "make the model take other sizes",
            )
        shape.append(given if isinstance(given, str) else int(size) if isinstance(size, int) else _own(size, name, i))
    return Input(name, value.dtype, tuple(shape))


def _own(size: Any, name: str, axis: int) -> str:
    """The name of a dimension that nobody named: torch's symbol; of a size that is computed from one, such as
    `2*s7`, the place where it stands."""
    return str(size) if str(size).isidentifier() else f"{identifier(name)}_{axis}"


def _output_form(exported: ExportedProgram, graph_module: fx.GraphModule) -> tuple[OutputForm, tuple[str, ...]]:
    """What the model returns, and the names of the tensors in it, in order."""
    output = next(n for n in graph_module.graph.nodes if n.op == "output")
    leaves = pytree.tree_leaves(output.args)
    tree = pytree.tree_unflatten(list(range(len(leaves))), exported.call_spec.out_spec)
    names = _leaf_names(tree)
    places = [
        Place(name or f"output_{i}") if isinstance(leaf, fx.Node) else leaf
        for i, (name, leaf) in enumerate(zip(names, leaves, strict=True))
    ]
    form = OutputForm(exported.call_spec.out_spec, tuple(places))
    return form, tuple(x.output for x in places if isinstance(x, Place))


def named_outputs(value: Any) -> dict[str, Tensor]:
    """A model's own output as named tensors, with the names that a captured program gives them."""
    leaves = zip(_leaf_names(value), pytree.tree_leaves(value), strict=True)
    return {name or f"output_{i}": leaf for i, (name, leaf) in enumerate(leaves) if isinstance(leaf, Tensor)}


def _leaf_names(value: Any) -> list[str]:
    """Names of all that a value holds, in order; empty for what only a place tells apart."""
    names = [_leaf_name(path) for path, _ in pytree.tree_flatten_with_path(value)[0]]
    return ["output"] if len(names) == 1 and not names[0] else names


def _leaf_name(path: tuple[Any, ...]) -> str:
    """`.logits` for a mapping's or dataclass' entry, empty for a bare tuple's."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
    return "" if not parts or (len(parts) == 1 and parts[0].isdigit()) else "_".join(parts)


def require_tensor(name: str, value: Any) -> None:
    """Raise M207 for an input that is no tensor."""
    if not isinstance(value, Tensor):
        what = f"input {name!r} is a {type(value).__name__}, not a tensor"
        raise MoecError("M207", what, "capture", "pass tensors only; fix other arguments in a wrapper")
