"""From an `nn.Module` (or an exported program) to a Program."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from moec.errors import MoecError
from moec.frontend.assumed import assume
from moec.frontend.dimensions import dynamic_shapes, suggested_bounds
from moec.frontend.looked_up import values_of
from moec.frontend.randomness import refuse_random
from moec.frontend.refusals import place_of, reason, way_out
from moec.frontend.rounded_sizes import rounded
from moec.program.functional import functionalize
from moec.program.original import Original, OutputForm, Place
from moec.program.program import META, Input, Program, attach, identifier, place
from moec.startup import late, swapped
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


def capture(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | Sequence[Tensor],
    dynamic: Dynamic | None = None,
    *,
    weights: Mapping[str, Weight] | None = None,
    source: str | None = None,
) -> Program:
    """Capture a model as a Program with torch.export; the model is run only on shapes, never on data.

    Args:
        model: any `nn.Module` in eval mode (it is put there), with its weights in memory or on the meta device.
        inputs: sample inputs by name, or in the order of `forward`'s parameters. Sizes of dynamic dimensions should be
            2 or more and unlike the model's own sizes (torch.export specialises 0 and 1).
        dynamic: input name -> a name or None for each dimension, e.g. `{"input_ids": ("batch", "sequence")}`.
            Dimensions of equal names are equal.
        weights: lazy weights by parameter name, for a model on the meta device; others come from the model's own
            tensors.
        source: where the model came from, for reports.

    Raises:
        MoecError: M207 when torch.export cannot make one graph of it, with the reason.
    """
    model.eval()
    named, dynamic = named_inputs(model, inputs), dynamic or {}

    def program(strict: bool = False) -> Program:
        exported, name = export(model, named, dynamic, strict), source or type(model).__name__
        return from_exported(exported, weights=weights, dynamic=dynamic, source=name, inputs=named)

    with rounded() as sizes:
        found = program()
    if sizes and weights is None:
        with contextlib.suppress(MoecError):
            return min(program(strict=True), found, key=lambda p: len(p.conditions))
    return found


def named_inputs(model: nn.Module, inputs: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """Sample inputs by name; those in order are named after `forward`'s parameters. Raises M207 for one that is no
    tensor."""
    if not isinstance(inputs, Mapping):
        names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
        inputs = dict(zip(names, inputs, strict=False))
    for name, value in inputs.items():
        _require_tensor(name, value)
    return dict(inputs)


def _require_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        what = f"input {name!r} is a {type(value).__name__}, not a tensor"
        raise MoecError("M207", what, "capture", "pass tensors only; fix other arguments in a wrapper")


def export(model: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic, strict: bool = False) -> ExportedProgram:
    """`torch.export.export` with named dynamic dimensions; inputs follow the model to the meta device.

    A model may bound a dimension (BERT's positions end at 512): then torch.export says which bound it needs, and gets
    it. With `strict` torch reads the model's bytecode, see `moec.frontend.rounded_sizes`. Raises M207 when the model
    cannot be captured as one graph; a refusal of moec's own within it stays what it is.
    """
    if any(t.device == META for t in (*model.parameters(), *model.buffers())):
        inputs = {name: t.to(META) for name, t in inputs.items()}
    inputs = {identifier(name): value for name, value in inputs.items()}
    dynamic = {identifier(name): shape for name, shape in dynamic.items()}
    found: dict[str, re.Match[str]] = {}
    while True:
        try:
            return _exported(model, dict(inputs), dynamic_shapes(inputs, dynamic, found), strict)
        except MoecError:
            raise
        except Exception as error:
            more = {name: bound for name, bound in suggested_bounds(error).items() if name not in found}
            if more:
                found |= more
                continue
            raise MoecError(
                "M207",
                f"torch.export cannot capture {type(model).__name__} as one graph: {type(error).__name__}: "
                f"{reason(error)[:400]}",
                place_of(error),
                way_out(error),
            ) from error


def _exported(model: nn.Module, inputs: dict[str, Tensor], shapes: Any, strict: bool) -> ExportedProgram:
    """Where a branch hangs on a size, torch follows the sample's and notes that it did: `moec.frontend.assumed`."""
    silent = contextlib.redirect_stderr(io.StringIO())  # where torch prints its whole partial graph
    with torch.no_grad(), silent, shapes_worked_out():
        return torch.export.export(
            model, (), inputs, dynamic_shapes=shapes, strict=strict, prefer_deferred_runtime_asserts_over_guards=True
        )


@contextlib.contextmanager
def shapes_worked_out() -> Iterator[None]:
    """Within, torch works out the shape of each operator's output anew, not from its cache: with sizes that are symbols
    an entry takes longer to make and to check than the shape, and few are used twice. Nor does it note in which order
    each output lies in memory, which takes as long as the shape, and which nobody here asks of a node."""
    with late("networkx"):
        import torch.export._trace
    from torch.fx.experimental import proxy_tensor

    extract = "_extract_tensor_metadata"
    less = partial(getattr(proxy_tensor, extract), include_contiguity=False)
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False), swapped(proxy_tensor, extract, less):
        yield


def from_exported(
    exported: ExportedProgram,
    *,
    weights: Mapping[str, Weight] | None = None,
    dynamic: Dynamic | None = None,
    source: str = "exported program",
    inputs: Mapping[str, Tensor] | None = None,
) -> Program:
    """Bring an `ExportedProgram` (a `.pt2` too) into the form that `Program` documents."""
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
    _require_tensor(name, value)
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
    names = [_leaf_name(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    if len(names) == 1 and not names[0]:
        names = ["output"]
    places = [
        Place(name or f"output_{i}") if isinstance(leaf, fx.Node) else leaf
        for i, (name, leaf) in enumerate(zip(names, leaves, strict=True))
    ]
    form = OutputForm(exported.call_spec.out_spec, tuple(places))
    return form, tuple(x.output for x in places if isinstance(x, Place))


def named_outputs(value: Any) -> dict[str, Tensor]:
    """A model's own output as named tensors, with the names that a captured program gives them."""
    leaves = pytree.tree_flatten_with_path(value)[0]
    names = [_leaf_name(path) for path, _ in leaves]
    if len(names) == 1 and not names[0]:
        names = ["output"]
    return {
        name or f"output_{i}": leaf
        for i, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True))
        if isinstance(leaf, Tensor)
    }


def _leaf_name(path: tuple[Any, ...]) -> str:
    """`.logits` for a mapping's or dataclass' entry, empty for a bare tuple's."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
    return "" if not parts or (len(parts) == 1 and parts[0].isdigit()) else "_".join(parts)
