"""Rotary embeddings written out become one operator, and only those that are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnxruntime.optimization.rotary import fuse_rotary, rotate_by_token
from tests.backends.onnxruntime.blocks import error, ops, run, value

B, N, S, D = 2, 3, 5, 8
POSITIONS = torch.tensor([[3, 4, 5, 6, 7], [0, 0, 1, 2, 3]])


def model_of(half: int = D // 2, repeated: bool = True, factor: float = 1.0, batch: str | int = "b") -> ir.Model:
    """Rotation as transformers writes it; `half` is where the rows are cut, `factor` scales the tables as YaRN does,
    `batch` is theirs."""
    x, angles = value("x", torch.float32, ["b", N, "s", D]), value("angles", torch.float32, [batch, "s", D // 2])
    graph = ir.Graph([x, angles], [], nodes=[], opset_imports={"": 20}, name="rotary")

    def number(*values: float, dtype: type = np.int64) -> ir.Value:
        name = f"c{len(graph.initializers)}"
        tensor = ir.tensor(np.array(values if len(values) > 1 else values[:1], dtype), name=name)
        graph.register_initializer(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        )
        return graph.initializers[name]

    def add(op: str, *inputs: ir.Value, shape: list[object], **attributes: object) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"{op}{len(graph)}")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = (
            f"v{len(graph)}",
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape(shape),
        )
        graph.append(node)
        return node.outputs[0]

    second = angles if repeated else add("Neg", angles, shape=[batch, "s", D // 2])
    both = add("Concat", angles, second, shape=[batch, "s", D], axis=-1)
    tables = []
    for name in ("Cos", "Sin"):
        scaled = add(
            "Mul", add(name, both, shape=[batch, "s", D]), number(factor, dtype=np.float32), shape=[batch, "s", D]
        )
        tables.append(add("Unsqueeze", scaled, number(1), shape=[batch, 1, "s", D]))
    last = add("Slice", x, number(half), number(2**60), number(3), number(1), shape=["b", N, "s", D - half])
    first = add("Slice", x, number(0), number(half), number(3), number(1), shape=["b", N, "s", half])
    turned = add("Concat", add("Neg", last, shape=["b", N, "s", D - half]), first, shape=["b", N, "s", D], axis=-1)
    whole = ["b", N, "s", D]
    y = add("Add", add("Mul", x, tables[0], shape=whole), add("Mul", turned, tables[1], shape=whole), shape=whole)
    y.name = "y"
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def inputs() -> dict[str, torch.Tensor]:
    frequencies = 10.0 ** -torch.arange(D // 2)
    return {
        "x": torch.randn(B, N, S, D, generator=torch.Generator().manual_seed(0)),
        "angles": POSITIONS[..., None] * frequencies,
    }


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_it_is_the_operator(factor: float) -> None:
    given, want = inputs(), run(model_of(factor=factor), **inputs())
    model = model_of(factor=factor)
    assert fuse_rotary(model) == 1 and ops(model).count("RotaryEmbedding") == 1 and "Neg" not in ops(model)
    assert error(run(model, **given), want) < 1e-6
    assert error(run(model_of(factor=factor * 1.01), **given), want) > 1e-3, "the tables matter"


def test_one_table_for_several_texts() -> None:
    given = inputs()
    given["angles"] = given["angles"][:1]
    model = model_of(batch=1)
    assert fuse_rotary(model) == 1 and "Range" not in ops(model)
    assert error(run(model, **given), run(model_of(batch=1), **given)) < 1e-6
    assert error(run(model, **given), run(model_of(), **inputs())) > 1e-3, "the other text has positions of its own"


def halves_model(order: int = 1, axis: int = 3, step: int = 0) -> ir.Model:
    """Rotation as gpt-oss writes it; `order` -1 turns the other way round. `step` 2: of pairs, as DeepSeek has it."""
    x, angles = value("x", torch.float32, ["b", N, "s", D]), value("angles", torch.float32, ["b", "s", D // 2])
    graph = ir.Graph([x, angles], [], nodes=[], opset_imports={"": 20}, name="rotary")

    def add(op: str, *inputs: ir.Value, shape: list[object], outputs: int = 1, **attributes: object) -> list[ir.Value]:
        node = ir.node(op, inputs, attributes, num_outputs=outputs, name=f"{op}{len(graph)}")
        for k, output in enumerate(node.outputs):
            output.name, output.type = f"v{len(graph)}.{k}", ir.TensorType(ir.DataType.FLOAT)
            output.shape = ir.Shape(shape)
        graph.append(node)
        return list(node.outputs)

    for name, number in (("zero", 0), ("one", 1), ("end", 2**60), ("axis", axis), ("step", step)):
        one = ir.tensor(np.array([number], np.int64), name=name)
        graph.register_initializer(ir.Value(name=name, type=ir.TensorType(one.dtype), shape=one.shape, const_value=one))
    given = graph.initializers
    table, wide, whole = ["b", "s", D // 2], ["b", 1, "s", D // 2], ["b", N, "s", D // 2]
    cos, sin = (
        add("Unsqueeze", *add(name, angles, shape=table), graph.initializers["one"], shape=wide)[0]
        for name in ("Cos", "Sin")
    )
    if step:
        cuts = [add("Slice", x, given[n], given["end"], given["axis"], given["step"], shape=whole)[0] for n in
                ("zero", "one")]  # fmt: skip
    first, second = (cuts if step else add("Split", x, shape=whole, outputs=2, axis=axis, num_outputs=2))[::order]
    products = [add("Mul", a, b, shape=whole)[0] for a, b in ((first, cos), (second, sin), (second, cos), (first, sin))]
    left, right = add("Sub", *products[:2], shape=whole), add("Add", *products[2:], shape=whole)
    (y,) = add("Concat", *left, *right, shape=["b", N, "s", D], axis=-1)
    y.name = "y"
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def test_halves_are_the_operator_too() -> None:
    given, want = inputs(), run(halves_model(), **inputs())
    model = halves_model()
    assert fuse_rotary(model) == 1 and not {"Split", "Concat"} & set(ops(model))
    assert error(run(model, **given), want) < 1e-6
    assert error(run(model, **{**given, "angles": given["angles"].flip(1)}), want) > 1e-2, "the places matter"
    assert fuse_rotary(halves_model(order=-1)) == 0, "turned the other way"


@pytest.mark.parametrize("other", [{"half": 2}, {"repeated": False}], ids=str)
def test_something_else_is_left_alone(other: dict[str, object]) -> None:
    model = model_of(**other)  # type: ignore[arg-type]
    assert fuse_rotary(model) == 0 and "RotaryEmbedding" not in ops(model)


def by_head(turned: tuple[int, ...] = (0, 2, 1, 3), shape: tuple[int, ...] = (0, 0, -1)) -> ir.Model:
    """Rows `[B, S, N, D]` turned to heads, rotated, turned by `turned` and put in a shape."""
    rows, tables = (
        value("x", torch.float32, ["b", "s", N, D]),
        [value(name, torch.float32, ["places", D // 2]) for name in ("cos", "sin")],
    )
    places = value("places", torch.int64, ["b", "s"])
    graph = ir.Graph([rows, places, *tables], [], nodes=[], opset_imports={"": 20, "com.microsoft": 1}, name="rotary")
    shape_tensor = ir.tensor(np.array(shape, np.int64), name="shape")
    graph.register_initializer(
        ir.Value(
            name="shape", const_value=shape_tensor, type=ir.TensorType(shape_tensor.dtype), shape=shape_tensor.shape
        )
    )
    there = ir.node("Transpose", [rows], {"perm": [0, 2, 1, 3]}, name="there")
    rotary = ir.node("RotaryEmbedding", [there.outputs[0], places, *tables], domain="com.microsoft", name="rotary")
    back = ir.node("Transpose", [rotary.outputs[0]], {"perm": list(turned)}, name="back")
    y = value("y", torch.float32, [None] * len(shape))
    nodes = [
        there,
        rotary,
        back,
        ir.node("Reshape", [back.outputs[0], graph.initializers["shape"]], outputs=[y], name="rows"),
    ]
    for node in nodes[:-1]:
        node.outputs[0].name = f"{node.name}.y"
    graph.extend(nodes)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def test_heads_are_not_turned_for_the_rotation_alone() -> None:
    angles = torch.arange(9)[:, None] * 10.0 ** -torch.arange(D // 2)
    given = {
        "x": torch.randn(B, S, N, D, generator=torch.Generator().manual_seed(0)),
        "places": POSITIONS,
        "cos": angles.cos(),
        "sin": angles.sin(),
    }
    model, want = by_head(), run(by_head(), **given)
    assert rotate_by_token(model) == 1 and "Transpose" not in ops(model) and error(run(model, **given), want) < 1e-6
    assert error(run(model, **{**given, "places": POSITIONS + 1}), want) > 1e-2, "the positions matter"


@pytest.mark.parametrize("other", [{"turned": (0, 1, 3, 2)}, {"shape": (0, -1)}], ids=str)
def test_what_is_turned_otherwise_stays(other: dict[str, tuple[int, ...]]) -> None:
    model = by_head(**other)
    assert rotate_by_token(model) == 0 and ops(model).count("Transpose") == 2


def test_pairs_are_the_operator_too() -> None:
    given, want = inputs(), run(halves_model(step=2), **inputs())
    model = halves_model(step=2)
    assert fuse_rotary(model) == 1 and ops(model).count("RotaryEmbedding") == 1 and "Slice" not in ops(model)
    assert error(run(model, **given), want) < 1e-6
    assert error(run(halves_model(), **given), want) > 1e-2, "halves are no pairs"
    assert fuse_rotary(halves_model(step=2, order=-1)) == 0 == fuse_rotary(halves_model(step=3))
