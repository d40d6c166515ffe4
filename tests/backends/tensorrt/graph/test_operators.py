"""The operator tables: what they forbid is refused by the real parser or builder too, and what they allow is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.backends.onnx.export import TRACE
from moec.backends.tensorrt.edition import EDITIONS
from moec.backends.tensorrt.graph.operators import Table, check, table_of, tables
from tests.backends.tensorrt.tiny import needs_rtx

RTX = table_of("tensorrt-rtx")
F, I64, BYTE = np.float32, np.int64, int(ir.DataType.UINT8)


class SmallModel:
    """A model of a few nodes on `x` `[rows, 8]`; constants are numpy arrays."""

    def __init__(self, dtype: ir.DataType = ir.DataType.FLOAT, width: int = 8) -> None:
        self.x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(["rows", width]))
        self.graph = ir.Graph([self.x], [], nodes=[], opset_imports={"": 21}, name="made")

    def constant(self, array: np.ndarray[Any, Any] | ir.TensorProtocol) -> ir.Value:
        name = f"c{len(self.graph.initializers)}"
        tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray) else array
        initializer = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.graph.register_initializer(initializer)
        return initializer

    def node(
        self,
        op: str,
        *inputs: ir.Value | np.ndarray[Any, Any] | ir.TensorProtocol,
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        values = [v if isinstance(v, ir.Value) else self.constant(v) for v in inputs]
        made = ir.node(op, values, attributes, num_outputs=outputs, domain=domain, name=f"{op}_{len(list(self.graph))}")
        for n, value in enumerate(made.outputs):
            value.name = f"{made.name}.{n}"
        self.graph.append(made)
        return made.outputs[0]

    def model(self, y: ir.Value) -> ir.Model:
        from onnx_ir.passes.common import ShapeInferencePass

        self.graph.outputs.append(y)
        made = ir.Model(self.graph, ir_version=10)
        ShapeInferencePass()(made)
        return made


def packed(bits: ir.DataType, rows: int, columns: int) -> ir.TensorProtocol:
    if bits == ir.DataType.INT8:
        return ir.tensor(np.ones((rows, columns), np.int8))
    return ir.PackedTensor(np.full(rows * columns // 2, 0x11, np.uint8), bits, shape=ir.Shape([rows, columns]))


def dequantized(
    m: SmallModel, bits: ir.DataType, block: int, sign: float = 1.0, width: int = 256, zero: bool = False
) -> ir.Value:
    scale = np.full((8, width // block), 0.5 * sign, F)
    more = [packed(bits, 8, width // block)] if zero else []
    return m.node(
        "Gemm",
        m.x,
        m.node("DequantizeLinear", packed(bits, 8, width), scale, *more, axis=1, block_size=block),
        transB=1,
    )


def topk(k: int) -> ir.Model:
    m = SmallModel(width=4000)
    return m.model(m.node("TopK", m.x, np.array([k], I64), outputs=2))


def simple(
    build: Callable[[SmallModel], ir.Value], dtype: ir.DataType = ir.DataType.FLOAT, width: int = 8
) -> Callable[[], ir.Model]:
    def make() -> ir.Model:
        m = SmallModel(dtype, width)
        return m.model(build(m))

    return make


def scattered(reduction: str) -> Callable[[SmallModel], ir.Value]:
    return lambda m: m.node(
        "ScatterND", m.node("Relu", m.x), np.zeros((1, 1), I64), np.ones((1, 8), F), reduction=reduction
    )


# what a table allows must be built, what it forbids must not be
ALLOWED: dict[str, Callable[[], ir.Model]] = {
    "topk 3840": lambda: topk(3840),
    "blocks of 64": simple(lambda m: dequantized(m, ir.DataType.INT4, 64), width=256),
    "blocks of 128": simple(lambda m: dequantized(m, ir.DataType.INT4, 128), width=256),
    "overwriting scatter": simple(scattered("none")),
    "one hot": simple(
        lambda m: m.node(
            "OneHot", m.node("Cast", m.x, to=int(ir.DataType.INT64)), np.array([6], I64), np.array([0, 1], F)
        )
    ),
    "running sum": simple(lambda m: m.node("CumSum", m.x, np.array(1, I64))),
    "gemm of a cast": simple(
        lambda m: m.node("Gemm", m.node("Cast", m.x, to=int(ir.DataType.FLOAT16)), np.ones((8, 8), np.float16))
    ),
    "batched product": simple(
        lambda m: m.node("MatMul", np.ones((3, 4, 8), F), m.node("Reshape", m.x, np.array([-1, 1, 8, 1], I64)))
    ),
}
FORBIDDEN: dict[str, tuple[Callable[[], ir.Model], str]] = {
    "topk 3841": (lambda: topk(3841), "at most 3840, not 3841"),
    "two dtypes": (simple(lambda m: m.node("MatMul", m.x, np.ones((8, 8), np.float16))), "f32 and f16"),
    "adding scatter": (simple(scattered("add")), "reduction none, not add"),
    "fp32 integers": (
        simple(lambda m: m.node("BitwiseAnd", m.node("Cast", m.x, to=int(ir.DataType.INT32)), np.array(3, np.int32))),
        "no BitwiseAnd",
    ),
    "sizes by data": (simple(lambda m: m.node("NonZero", m.x)), "no NonZero"),
    "a zero point": (simple(lambda m: dequantized(m, ir.DataType.INT4, 64, zero=True), width=256), "must be zero"),
    "an operator of a runtime": (
        simple(lambda m: m.node("FusedMatMul", m.x, np.ones((8, 8), F), domain="com.microsoft")),
        "com.microsoft::FusedMatMul",
    ),
    "unique": (simple(lambda m: m.node("Unique", m.x, axis=0)), "no Unique"),
    "bytes": (
        simple(lambda m: m.node("Cast", m.node("Transpose", m.node("Cast", m.x, to=BYTE), perm=[1, 0]), to=1)),
        "not u8",
    ),
}


def builds(model: ir.Model) -> str:
    """Empty when TensorRT-RTX parses and builds a model, else the reason."""
    trt = EDITIONS["tensorrt-rtx"].load()
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network, config, profile = (
        builder.create_network(0),
        builder.create_builder_config(),
        builder.create_optimization_profile(),
    )
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(ir.to_proto(model).SerializeToString()):
        return str(parser.get_error(0).desc())
    width = network.get_input(0).shape[1]
    profile.set_shape("x", (1, width), (4, width), (8, width))
    config.add_optimization_profile(profile)
    return "" if builder.build_serialized_network(network, config) is not None else "the builder gives no plan"


@needs_rtx
@pytest.mark.parametrize("name", ALLOWED)
def test_what_the_table_allows_is_built(name: str) -> None:
    model = ALLOWED[name]()
    assert check(model, RTX) == []
    assert builds(model) == ""


@needs_rtx
@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_the_table_forbids_is_not_built(name: str) -> None:
    make, why = FORBIDDEN[name]
    model = make()
    found = check(model, RTX)
    assert any(why in v.reason for v in found), found
    assert builds(model) != ""


@needs_rtx
def test_the_parser_has_every_operator_of_the_table() -> None:
    trt = EDITIONS["tensorrt-rtx"].load()
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    parser = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
    assert [op for op in RTX.rules if not parser.supports_operator(op)] == []
    assert not parser.supports_operator("NoSuchOperator")


def test_a_violation_names_the_line_of_the_model() -> None:
    model = topk(3841)
    model.graph[0].metadata_props[TRACE] = (
        'File "/somewhere/modeling_tiny.py", line 12, in forward\\n    topk()\\n  File "/x/router.py", line 7, in route'
    )
    (found,) = check(model, RTX)
    assert (found.op, found.source, found.where) == ("TopK", "router.py:7", f"{found.node} (router.py:7)")


def test_a_constant_that_is_computed_is_seen() -> None:
    m = SmallModel()
    total = m.node("ReduceSum", m.x, m.node("Cast", m.node("Shape", m.x), to=int(ir.DataType.INT64)))
    assert any("must be a constant" in v.reason for v in check(m.model(total), RTX))


def test_versions_are_found_by_number() -> None:
    assert table_of("tensorrt", "11.4.0").name == "tensorrt-11.0"
    assert table_of("tensorrt", "10.16.1").name == "tensorrt-10.16"
    assert table_of("tensorrt", "9.0").name == "tensorrt-10.16", "older than all: the oldest"
    assert table_of("tensorrt").name == "tensorrt-11.0"
    assert table_of("tensorrt-rtx", "1.7.1.116").name == RTX.name
    assert {name.rpartition("-")[0] for name in tables()} == set(EDITIONS)


def test_tables_differ_where_the_libraries_do() -> None:
    def blocks(table: Table) -> list[str]:
        return [v.reason for v in check(simple(lambda m: dequantized(m, ir.DataType.INT4, 32), width=256)(), table)]

    assert blocks(RTX) == []
    assert "blocks of 64 or 128, not of 32" in blocks(table_of("tensorrt"))[0]


@pytest.mark.parametrize(
    ("kind", "block", "wrong"), [(ir.DataType.FLOAT4E2M1, 16, ""), (ir.DataType.INT4, 64, "must be a constant")]
)
def test_scales_of_4_bit_floats_may_be_dequantized_themselves(kind: ir.DataType, block: int, wrong: str) -> None:
    m = SmallModel(width=256)
    steps = m.node("DequantizeLinear", packed(ir.DataType.INT8, 8, 256 // block), np.array(0.5, F))
    y = m.node("Gemm", m.x, m.node("DequantizeLinear", packed(kind, 8, 256), steps, axis=1, block_size=block), transB=1)
    m.graph.opset_imports[""] = 23
    found = [v.reason for v in check(m.model(y), table_of("tensorrt-rtx"))]
    assert (found == []) if not wrong else (len(found) == 1 and wrong in found[0])
