"""ONNX Runtime's operators that moec does not emit, on this machine's CPU: is one there, right, and faster?

usage: python benchmarks/unused_operators_cpu.py [--runs 25]

First which have a kernel; then HyperConnectionPreMix and -PostMix beside standard operators, with the largest error
against float64; then attention of one token over keys that an index chose, masked and gathered. The figures stand in
docs/lowering.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

STREAMS, WIDTH = 4, 4096  # DeepSeek-V4's
HEADS, KEY, VALUE = 16, 192, 128
MICROSOFT = "com.microsoft"
Feeds = Mapping[str, np.ndarray]


def session(nodes: list[Any], inputs: Mapping[str, int], constants: Mapping[str, list[int]] | None = None) -> Any:
    """A session on one thread whose output is `y`. inputs: ranks by name, those that end in `_i` int64."""
    kinds = {n: TensorProto.INT64 if n.endswith("_i") else TensorProto.FLOAT for n in inputs}
    given = [helper.make_tensor_value_info(n, kinds[n], [f"{n}{k}" for k in range(r)]) for n, r in inputs.items()]
    held = [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in (constants or {}).items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", given, [out], held), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node(kind: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    """`-` stands for an input that is left out."""
    return helper.make_node(kind, [n.strip("-") for n in inputs.split()], output.split(), **attributes)


def cpu_ms(each: Mapping[str, Any], feeds: Feeds, runs: int) -> dict[str, float]:
    """The lower quartile of the processor's time of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(runs):
        for name, one in each.items():
            start = time.process_time()
            one.run(None, feeds)
            found[name].append((time.process_time() - start) * 1e3)
    return {name: sorted(times)[len(times) // 4] for name, times in found.items()}


def kernels() -> None:
    """Which operators the CPU has."""
    rank4 = {"q": 4, "k": 4, "v": 4, "d": 3, "b": 3, "s": 4}
    tried = {
        "GatedDeltaNet": ([node("GatedDeltaNet", "q k v - d b s", "y state", domain=MICROSOFT)], rank4),
        "SparseAttentionIndexer": (
            [node("SparseAttentionIndexer", "q k n m c s - p", "chosen y", domain=MICROSOFT, policy_mode="qsa",
                  token_budget=8, compress_ratio=4)],
            {"q": 3, "k": 3, "n": 1, "m": 1, "c": 2, "s": 2, "p": 3},
        ),
        "HyperConnectionPreMix": ([node("HyperConnectionPreMix", "x p", domain=MICROSOFT)], {"x": 4, "p": 3}),
    }  # fmt: skip
    for name, (nodes, inputs) in tried.items():
        try:
            session(nodes, inputs)
            print(f"{name}: the CPU has it")
        except Exception as error:
            print(f"{name}: {str(error)[:110]}")


def hyper_connections(runs: int) -> None:
    """Both operators beside standard ones."""
    ins, axes = {"x": 4, "b": 3, "p": 3, "m": 4}, {"last": [-1], "two": [2]}
    before = {
        "PreMix": session([node("HyperConnectionPreMix", "x p", domain=MICROSOFT)], {"x": 4, "p": 3}),
        "Mul, ReduceSum": session(
            [node("Unsqueeze", "p last", "u"), node("Mul", "u x", "w"), node("ReduceSum", "w two", keepdims=0)],
            {"x": 4, "p": 3}, axes,
        ),
    }  # fmt: skip
    after = {
        "PostMix": session([node("HyperConnectionPostMix", "x b p m", domain=MICROSOFT)], ins),
        "MatMul, Mul, Add": session(
            [node("Unsqueeze", "p last", "u"), node("Unsqueeze", "b two", "w"), node("Mul", "u w", "a"),
             node("Transpose", "m", "t", perm=[0, 1, 3, 2]), node("MatMul", "t x", "c"), node("Add", "a c")],
            ins, axes,
        ),
    }  # fmt: skip
    draw = np.random.default_rng(0)
    for tokens in (0, 1, 16, 128):
        shapes = {"x": (STREAMS, WIDTH), "b": (WIDTH,), "p": (STREAMS,), "m": (STREAMS, STREAMS)}
        given = {n: draw.standard_normal((1, tokens, *s), dtype=np.float32) for n, s in shapes.items()}
        x, b, p, m = (given[n].astype(np.float64) for n in "xbpm")
        wanted = np.einsum("bsc,bsch->bsh", p, x), np.einsum("bsck,bsch->bskh", m, x) + p[..., None] * b[:, :, None]
        for each, want in zip((before, after), wanted, strict=True):
            feeds = {n: given[n] for n in (("x", "p") if each is before else shapes)}
            times = cpu_ms(each, feeds, runs)
            for name, one in each.items():
                error = float(np.abs(one.run(None, feeds)[0] - want).max(initial=0.0))
                print(f"{tokens} tokens, {name}: {times[name] * 1e3:.0f} us, error {error:.1e}")


def chosen_keys(runs: int) -> None:
    """Attention of one token over some of its keys."""
    ins, scale = {"q": 4, "k": 4, "v": 4, "at_i": 1}, KEY**-0.5
    low, zero = (helper.make_tensor(n, TensorProto.FLOAT, [1], [x]) for n, x in (("low", -3e38), ("zero", 0.0)))
    gathered = session(
        [node("Gather", "k at_i", "kk", axis=2), node("Gather", "v at_i", "vv", axis=2),
         node("FusedMatMul", "q kk", "s", domain=MICROSOFT, transB=1, alpha=scale), node("Softmax", "s", "w"),
         node("MatMul", "w vv")],
        ins,
    )  # fmt: skip
    masked = session(
        [node("Shape", "k", "n", start=2, end=3), node("ConstantOfShape", "n", "closed", value=low),
         node("Shape", "at_i", "t"), node("ConstantOfShape", "t", "open", value=zero),
         node("ScatterElements", "closed at_i open", "mask"),
         node("FusedMatMul", "q k", "s", domain=MICROSOFT, transB=1, alpha=scale), node("Add", "s mask", "r"),
         node("Softmax", "r", "w"), node("MatMul", "w v")],
        ins,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    for chosen in (512, 2048):
        for held in (2048, 4096, 8192, 16384):
            shapes = {"q": (1, KEY), "k": (held, KEY), "v": (held, VALUE)}
            feeds = {n: draw.standard_normal((1, HEADS, *s), dtype=np.float32) for n, s in shapes.items()}
            feeds["at_i"] = np.sort(draw.permutation(held)[:chosen])
            apart = float(np.abs(masked.run(None, feeds)[0] - gathered.run(None, feeds)[0]).max())
            times = cpu_ms({"masked": masked, "gathered": gathered}, feeds, runs)
            print(f"{chosen} of {held} keys:", *(f"{n} {ms:.2f} ms," for n, ms in times.items()), f"apart {apart:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=25)
    runs = parser.parse_args().runs
    onnxruntime.set_default_logger_severity(4)
    kernels()
    hyper_connections(runs)
    chosen_keys(runs)


if __name__ == "__main__":
    main()
