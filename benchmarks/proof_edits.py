"""Single errors that `proof_mutants.py` makes: each changes a program, a model, an ONNX file or a weight in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from proof_changes import aten, dialect, then
from torch import Tensor, fx, nn

from moec.program.program import Program
from moec.weights.lazy import from_tensor


# ---------------------------------------------------------------------- routers and experts
def after_routers(*steps: tuple[Any, ...]) -> Callable[[Program], None]:
    """Every router's logits after further steps."""

    def edit(program: Program) -> None:
        found = [
            n for n in program.nodes(aten.linear.default) if "gate_weight" in str(n.args[1]) and "mlp" in str(n.args)
        ]
        assert found
        for node in found:
            users = list(node.users)
            with program.graph.inserting_before(node.next):
                new = then(program, node, *steps)
            for user in users:
                user.replace_input_with(node, new)

    return edit


def bias_in_the_weights(program: Program) -> None:
    """DeepSeek-V3's scores with their correction bias become the weights, too."""
    found = [n for n in program.nodes(aten.gather.default) if "sigmoid" in str(n.args[0])]
    assert found
    for node in found:
        biased = next(n for n in program.nodes(aten.add.Tensor) if n.args[0] is node.args[0])
        node.update_arg(0, biased)


def first_token_of_everybody(program: Program, ids: fx.Node, _shares: fx.Node) -> fx.Node:
    """Every token goes where the first one goes."""
    first = then(program, ids, (aten.slice.Tensor, 0, 0, 1))
    return then(program, ids, (aten.mul.Tensor, 0), (aten.add.Tensor, first))


def no_up(program: Program) -> None:
    """SwiGLU without its second factor: its rows are zeros, and 1 is added to what they give."""
    for node in program.nodes(dialect.moe.default):
        name = str(node.args[4].target)  # type: ignore[union-attr]  # a weight
        value = program.weights[name].load().clone()
        value[:, value.shape[1] // 2 :] = 0
        program.weights[name] = from_tensor(value, name)
        node.kwargs = {**node.kwargs, "beta": 1.0}


def bias_of_every_expert(program: Program) -> None:
    """The down projections' biases of the chosen experts added whole, not weighted by the router."""
    for node in program.nodes(dialect.experts.default):
        ids, bias = node.args[1], node.args[6]
        node.update_arg(6, None)
        users = list(node.users)
        with program.graph.inserting_before(node.next):
            whole = then(program, ids, (_rows_of, bias), (aten.sum.dim_IntList, [1]))  # type: ignore[arg-type]  # a node
            new = then(program, node, (aten.add.Tensor, whole))
        for user in users:
            user.replace_input_with(node, new)


def _rows_of(ids: Any, table: Any) -> Any:
    return aten.embedding.default(table, ids)


def exchanged(name: str, old: str, new: str) -> Callable[[Program], None]:
    """A keyword argument that is `old` made `new`."""

    def edit(program: Program) -> None:
        nodes = [n for n in program.graph.nodes if n.kwargs.get(name) == old]
        assert nodes
        for node in nodes:
            node.kwargs = {**node.kwargs, name: new}

    return edit


# ---------------------------------------------------------------------- positions and masks
def _positions(program: Program) -> fx.Node:
    """Where the positions of the new tokens are cut out of all."""
    return next(n for n in program.nodes(aten.slice.Tensor) if getattr(n.args[0], "target", None) is aten.clamp.default)


def _move_positions(program: Program, change: Callable[[fx.Node], fx.Node]) -> None:
    node = _positions(program)
    users = list(node.users)
    with program.graph.inserting_before(node.next):
        new = change(node)
    for user in users:
        user.replace_input_with(node, new)


def positions_from_zero(program: Program) -> None:
    """New tokens begin at position 0, however many are in the cache."""
    past = next(n for n in program.nodes(aten.sym_size.int) if "past" in str(n.args[0]) and n.args[1] == 2)
    _move_positions(program, lambda node: then(program, node, (aten.sub.Tensor, past), (aten.clamp.default, 0)))


def positions_of_columns(program: Program) -> None:
    """A token's position is its column, padding counted."""
    mask = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "attention_mask")
    counted = next(n for n in program.nodes(aten.cumsum.default) if n.args[0] is mask)
    with program.graph.inserting_before(counted):
        counted.update_arg(0, then(program, mask, (aten.mul.Tensor, 0), (aten.add.Tensor, 1)))


def clamped_positions(last: int) -> Callable[[Program], None]:
    """Positions beyond the end of a table are its last one."""
    return lambda program: _move_positions(program, lambda node: then(program, node, (aten.clamp.default, 0, last)))


def mask_cut_at(length: int) -> Callable[[Program], None]:
    """Tokens after the first so many are seen by nobody."""

    def edit(program: Program) -> None:
        mask = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "attention_mask")
        users = [user for user in mask.users if user.target is not aten.cumsum.default]
        first = next(n for n in program.graph.nodes if n.op == "call_function")
        with program.graph.inserting_before(first):
            seen = then(
                program, mask, (aten.cumsum.default, -1), (aten.le.Scalar, length), (aten.to.dtype, torch.int64)
            )
            cut = then(program, mask, (aten.mul.Tensor, seen))
        for user in users:
            user.replace_input_with(mask, cut)

    return edit


# ---------------------------------------------------------------------- ONNX files
def _condition(model: Any, name: str, axis: int, least: int) -> tuple[Any, list[Any]]:
    """Whether an input has at least so many along an axis, and the nodes that say so."""
    import onnx_ir as ir

    value = next(i for i in model.graph.inputs if i.name == name)
    constants = {"mutant.axis": axis, "mutant.least": least}
    made = []
    for label, number in constants.items():
        constant = ir.Value(name=label, const_value=ir.tensor([number], dtype=ir.DataType.INT64, name=label))
        model.graph.initializers[label] = constant
        made.append(constant)
    shape = ir.node("Shape", [value], name="mutant/shape")
    size = ir.node("Gather", [shape.outputs[0], made[0]], {"axis": 0}, name="mutant/size")
    large = ir.node("GreaterOrEqual", [size.outputs[0], made[1]], name="mutant/large")
    return large.outputs[0], [shape, size, large]


def mask_as_ones(least: int) -> Callable[[Any], None]:
    """The attention mask is all ones from a batch of this size on."""

    def edit(model: Any) -> None:
        import onnx_ir as ir

        mask = next(i for i in model.graph.inputs if i.name == "attention_mask")
        users = list(mask.uses())
        large, nodes = _condition(model, "input_ids", 0, least)
        ones = ir.node("Cast", [large], {"to": ir.DataType.INT64.value}, name="mutant/ones")
        full = ir.node("Max", [mask, ones.outputs[0]], name="mutant/mask")
        for node, index in users:
            node.replace_input_with(index, full.outputs[0])
        model.graph.insert_before(model.graph[0], [*nodes, ones, full])

    return edit


def halved_where(name: str, axis: int, least: int) -> Callable[[Any], None]:
    """The logits are half of what they should be where an input has at least so many along an axis."""

    def edit(model: Any) -> None:
        import onnx_ir as ir

        logits, name_of = model.graph.outputs[0], model.graph.outputs[0].name
        numbers = {"mutant.half": -0.5, "mutant.one": 1.0}
        for label, number in numbers.items():
            tensor = ir.tensor([number], dtype=ir.DataType.FLOAT, name=label)
            model.graph.initializers[label] = ir.Value(name=label, const_value=tensor)
        half, one = (model.graph.initializers[label] for label in numbers)
        large, nodes = _condition(model, name, axis, least)
        scale = ir.node("Cast", [large], {"to": ir.DataType.FLOAT.value}, name="mutant/float")
        less = ir.node("Mul", [scale.outputs[0], half], name="mutant/less")
        factor = ir.node("Add", [less.outputs[0], one], name="mutant/factor")
        halved = ir.node("Mul", [logits, factor.outputs[0]], name="mutant/halved")
        logits.name, new = "mutant.whole", halved.outputs[0]
        new.name, new.shape, new.type = name_of, logits.shape, logits.type
        model.graph.extend([*nodes, scale, less, factor, halved])
        model.graph.outputs[0] = new

    return edit


# ---------------------------------------------------------------------- weights
def halves_exchanged(weight: Tensor) -> Tensor:
    return torch.cat(list(reversed(weight.chunk(2, 1))), 1)


def interleaved(weight: Tensor) -> Tensor:
    """Rows gate, up, gate, up … where gates before ups were meant."""
    return torch.stack(weight.chunk(2, 1), 2).flatten(1, 2)


def each_nibble(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Both codes of every byte changed."""
    return lambda packed: (change(packed & 15) | change(packed >> 4) << 4).to(torch.uint8)


def borrowed(packed: Tensor) -> Tensor:
    """A code below 8 takes one from the code above it."""
    low, high = (packed & 15).int(), (packed >> 4).int()
    return (low | (high - (low < 8).int()).clamp(min=0) << 4).to(torch.uint8)


def scales_of_pairs(scale: Tensor) -> Tensor:
    """The first of each two groups' scales for both."""
    return scale[..., ::2].repeat_interleave(2, -1)[..., : scale.shape[-1]]


# ---------------------------------------------------------------------- models
def from_layer_0(name: str) -> Callable[[Any], object]:
    """A weight of the first layer in the place of the second's."""

    def edit(model: Any) -> None:
        first, second = (dict(layer.named_parameters())[name] for layer in model.model.layers)
        second.copy_(first)

    return edit


def tiled_heads(layer: Any) -> None:
    """Query head n reads key-value head n % G where n // (N / G) was meant: the query heads change places."""
    attention = layer.self_attn
    heads, width = attention.config.num_attention_heads, attention.head_dim
    groups = heads // attention.config.num_key_value_heads
    order = torch.arange(heads).view(-1, groups).T.flatten()
    rows = (order[:, None] * width + torch.arange(width)).flatten()
    attention.q_proj.weight.copy_(attention.q_proj.weight[rows].clone())
    attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows].clone())


def untied(model: Any) -> None:
    """An output head of its own, as it was initialised."""
    noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(9))
    model.lm_head.weight = nn.Parameter(0.15 * noise)
    model.config.tie_word_embeddings = False
