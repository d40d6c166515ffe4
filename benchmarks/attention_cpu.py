"""Forms of attention in ONNX Runtime on this machine's CPU: why moec lowers `moec::attention` as it does.

usage: python benchmarks/attention_cpu.py [--seconds 0.7] [--json] [--save]

16 heads of 128 on 8 key-value heads, float32, a bias for the mask: GroupQueryAttention with one buffer for past and
present, which is what moec's engines do, or with two, the standard operator Attention (opset 23), and plain products
with the query heads folded into the rows of their key-value head. A ratio above 1 means that moec is faster. `batch,
new tokens, tokens in the cache`; a form that cannot run a case has no figure there, and where moec's cannot, the engine
concatenates for the standard operator.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from reporting import add_output, environment, put_out

HEADS, GROUPS, SIZE = 16, 8, 128
CASES = [
    (1, 1, 0),
    (1, 1, 64),
    (1, 1, 512),
    (1, 1, 2048),
    (4, 1, 512),
    (1, 64, 512),
    (4, 16, 64),
    (1, 128, 0),
    (1, 512, 0),
    (1, 2048, 0),
]
MICROSOFT = "com.microsoft"


def node(op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, domain=domain, **attributes)


def constants(**values: Any) -> list[Any]:
    kinds = {"int64": TensorProto.INT64, "int32": TensorProto.INT32}
    return [
        helper.make_tensor(n, kinds[str(v.dtype)], v.shape, v.tobytes(), raw=True)
        for n, v in ((n, np.asarray(v)) for n, v in values.items())
    ]


def grouped_query() -> tuple[list[Any], list[Any]]:
    nodes = [
        node("Shape", ["mask"], ["total_1"], start=3, end=4),
        node("Cast", ["total_1"], ["total_32"], to=TensorProto.INT32),
        node("Squeeze", ["total_32"], ["total"]),
        node("Sub", ["total_32", "one"], ["last"]),
        node("Shape", ["q"], ["batch"], start=0, end=1),
        node("Expand", ["last", "batch"], ["lengths"]),
        node(
            "GroupQueryAttention",
            ["q", "k", "v", "past_k", "past_v", "lengths", "total", "", "", "", "mask"],
            ["y", "present_k", "present_v"],
            MICROSOFT,
            num_heads=HEADS,
            kv_num_heads=GROUPS,
            scale=SIZE**-0.5,
        ),
    ]
    return nodes, constants(one=np.array([1], np.int32))


def standard() -> tuple[list[Any], list[Any]]:
    inputs, outputs = ["q", "k", "v", "mask", "past_k", "past_v"], ["y", "present_k", "present_v"]
    return [node("Attention", inputs, outputs, q_num_heads=HEADS, kv_num_heads=GROUPS, scale=SIZE**-0.5)], []


def plain() -> tuple[list[Any], list[Any]]:
    nodes = []
    for name, shape in (("q", "q_shape"), ("k", "kv_shape"), ("v", "kv_shape")):
        nodes += [
            node("Reshape", [name, shape], [f"{name}4"]),
            node("Transpose", [f"{name}4"], [f"{name}t"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Concat", ["past_k", "kt"], ["present_k"], axis=2),
        node("Concat", ["past_v", "vt"], ["present_v"], axis=2),
        node("Reshape", ["qt", "folded"], ["rows"]),
        node("FusedMatMul", ["rows", "present_k"], ["s0"], MICROSOFT, transB=1, alpha=SIZE**-0.5),
        node("Reshape", ["s0", "by_head"], ["s1"]),
        node("Add", ["s1", "mask"], ["s2"]),
        node("Softmax", ["s2"], ["s3"], axis=-1),
        node("Reshape", ["s3", "by_group"], ["s4"]),
        node("MatMul", ["s4", "present_v"], ["o0"]),
        node("Reshape", ["o0", "heads"], ["o1"]),
        node("Transpose", ["o1"], ["o2"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o2", "flat"], ["y"]),
    ]
    shapes = {
        "q_shape": [0, 0, HEADS, SIZE],
        "kv_shape": [0, 0, GROUPS, SIZE],
        "folded": [0, GROUPS, -1, SIZE],
        "by_head": [0, HEADS, -1, 0],
    }
    shapes |= {"by_group": [0, GROUPS, -1, 0], "heads": [0, HEADS, -1, SIZE], "flat": [0, 0, -1]}
    return nodes, constants(**{n: np.array(v, np.int64) for n, v in shapes.items()})


MOEC = "GroupQueryAttention, one buffer"
FORMS: dict[str, Callable[[], tuple[list[Any], list[Any]]]] = {
    MOEC: grouped_query,
    "GroupQueryAttention": grouped_query,
    "Attention (opset 23)": standard,
    "plain products": plain,
}


def session(form: str) -> Any:
    import onnxruntime as ort

    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    inputs = [value("q", ["B", "S", HEADS * SIZE]), *(value(n, ["B", "S", GROUPS * SIZE]) for n in "kv")]
    inputs += [*(value(n, ["B", GROUPS, "P", SIZE]) for n in ("past_k", "past_v")), value("mask", ["B", 1, "S", "T"])]
    outputs = [
        value("y", ["B", "S", HEADS * SIZE]),
        *(value(n, ["B", GROUPS, "T", SIZE]) for n in ("present_k", "present_v")),
    ]
    nodes, initializers = FORMS[form]()
    graph = helper.make_graph(nodes, "attention", inputs, outputs, initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)], ir_version=11
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs_of(batch: int, new: int, past: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    make = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    seen = np.arange(past + new)[None] <= np.arange(new)[:, None] + past
    mask = np.broadcast_to(np.where(seen, 0, -3e38).astype(np.float32), (batch, 1, new, past + new)).copy()
    width = GROUPS * SIZE
    return {
        "q": make(batch, new, HEADS * SIZE), "k": make(batch, new, width), "v": make(batch, new, width),
        "past_k": make(batch, GROUPS, past, SIZE), "past_v": make(batch, GROUPS, past, SIZE), "mask": mask,
    }  # fmt: skip


def caller(form: str, one: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    """What runs a form and returns y; one buffer is made and bound once, and its new tokens are written to the same
    place every time."""
    if form != MOEC:
        return lambda: one.run(None, feeds)[0]
    from onnxruntime import OrtValue

    binding, buffers, new = one.io_binding(), [], feeds["q"].shape[1]
    for name, value in feeds.items():
        room = ((0, 0), (0, 0), (0, new), (0, 0)) if name.startswith("past_") else ((0, 0),) * value.ndim
        buffers.append(OrtValue.ortvalue_from_numpy(np.pad(value, room)))
        binding.bind_ortvalue_input(name, buffers[-1])
        if name.startswith("past_"):
            binding.bind_ortvalue_output(name.replace("past", "present"), buffers[-1])
    binding.bind_output("y", "cpu")

    def call() -> Any:
        one.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()

    return call


def measure(sessions: dict[str, Any], feeds: dict[str, Any], seconds: float) -> dict[str, list[float]]:
    """Seconds of each form that runs, in turns; all must agree."""
    results, calls = {}, {form: caller(form, one, feeds) for form, one in sessions.items()}
    for form, call in calls.items():
        try:
            results[form] = call()
        except Exception as error:
            print(f"{form}: {str(error).splitlines()[0][-90:]}", file=sys.stderr)
    want = results["plain products"]
    assert all(abs(y - want).max() < 1e-4 for y in results.values()), "the forms disagree"
    times: dict[str, list[float]] = {form: [] for form in results}
    end = time.perf_counter() + seconds * len(results)
    while time.perf_counter() < end or len(times["plain products"]) < 5:
        for form in results:
            start = time.perf_counter()
            calls[form]()
            times[form].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=0.7, help="for each case and form")
    add_output(parser, "attention_cpu")
    options = parser.parse_args()
    report: dict[str, Any] = {**environment(), "rows": []}
    lines = []
    sessions = {form: session(form) for form in FORMS}
    for case in CASES:
        times = measure(sessions, inputs_of(*case), options.seconds)
        for form, values in times.items():
            who = "moec" if form == MOEC else form
            report["rows"].append(
                {"case": str(case), "who": who, "value": round(statistics.median(values) * 1e3, 4), "unit": "ms"}
            )
            ratio = (
                statistics.median(v / m for v, m in zip(values, times[MOEC], strict=True)) if MOEC in times else None
            )
            if ratio is not None:
                report["rows"].append({"case": str(case), "who": who, "value": round(ratio, 3), "unit": "x moec"})
            beside = "" if ratio is None else f"{ratio:8.2f} x moec"
            lines.append(f"{case!s:<16}{form:<36}{statistics.median(values) * 1e3:9.3f} ms{beside}")
            print(lines[-1], file=sys.stderr)
    put_out("attention_cpu", report, "\n".join(lines), options)


if __name__ == "__main__":
    main()
