"""First day, stage `runtime`: what ONNX Runtime's CUDA provider launches, copies and holds, beside what was foretold.

`launches`: a decoder's step under PyTorch's profiler, which sees every kernel and copy of the process through CUPTI,
beside the counts of the stand-in for CUDA's libraries. cuBLAS may start two kernels for a product, so that kernels are
told and copies are an aim.

`attention`: GroupQueryAttention of Qwen3-30B-A3B's heads alone, with an attention bias and without, against PyTorch's
in float64: milliseconds, and what the device holds more after a call.

`memory`: what the device holds more after an engine with 4-bit weights was opened, over the bytes of these weights.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from first_day_engines import LARGE, counts, opened
from first_day_graphs import DATA, Facts, fill
from first_day_rows import Rows
from torch import Tensor
from torch.nn import functional as F

HEADS, KV_HEADS, SIZE = 32, 4, 128
KINDS = {"HtoD": "to device", "DtoH": "to host", "DtoD": "on device"}
ONE_COPY = 1 / 1.5  # of packed weights: their bytes over what is held


def of_trace(trace: dict[str, Any]) -> dict[str, Any]:
    """Kernels and copies of a profiler's trace (Chrome's format, as PyTorch writes it)."""
    kernels: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for event in trace["traceEvents"]:
        if event.get("cat") == "kernel":
            kernels[event["name"]] += 1
        elif event.get("cat") == "gpu_memcpy":
            kind = next((KINDS[k] for k in KINDS if k in event["name"]), "elsewhere")
            found[f"copies {kind}"] += 1
            found[f"bytes {kind}"] += int(event.get("args", {}).get("bytes", 0))
    return {"launches": kernels.total(), **found, "kernels": dict(kernels)}


def profiled(call: Callable[[], Any]) -> dict[str, Any]:
    """Kernels and copies of one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, "trace.json")
        seen.export_chrome_trace(str(path))
        return of_trace(json.loads(path.read_text()))


def step_of(folder: Path, target: str) -> dict[str, Any]:
    """What a decoder's fourth token launches and copies on the device."""
    random, engine = np.random.default_rng(0), opened(folder, target)
    text = engine.continuation()  # type: ignore[attr-defined]
    text.step(random.integers(3, 64, (1, 16)), np.ones((1, 16), np.int64))
    for past in (16, 17, 18):
        call = lambda past=past: text.step(random.integers(3, 64, (1, 1)), np.ones((1, past + 1), np.int64))  # noqa: E731
        found = profiled(call) if past == 18 else call()
    engine.close()
    return dict(found)


def on_stand_in(folder: Path, target: str) -> dict[str, Any]:
    """The same on the stand-in."""
    from tests.cuda_stand_in.observe import observe

    seen = observe(folder, target=target)
    if seen.error:
        raise RuntimeError(seen.error)
    return counts(seen.step) | {"loaded_bytes": seen.parts["first"].held_bytes or seen.parts["load"].held_bytes}


def launches(rows: Rows, device: str, folders: dict[str, Path]) -> None:
    """Decoders' steps beside what the stand-in counted where they were made."""
    decoders = {name: folder for name, folder in folders.items() if "step" in Facts.read(folder).expected}
    for name in rows.todo([n for n in decoders if not n.startswith(LARGE)], lambda n: f"a step of {n}"):
        facts = fill(decoders[name])
        seen, foretold = (
            (on_stand_in if device == "cpu" else step_of)(decoders[name], facts.target),
            facts.expected["step"],
        )
        names = sorted(seen["kernels"].items(), key=lambda item: -item[1])[:12]
        rows.figure("kernels", seen["launches"], "launches", foretold=foretold["launches"], most=names)
        for kind in KINDS.values():
            number, before = seen.get(f"copies {kind}", 0), foretold[f"copies {kind}"]
            rows.figure(f"copies {kind}", number, "copies", foretold=before, bytes=seen.get(f"bytes {kind}", 0))
            rows.aim(f"copies {kind}, less than foretold", before - number, "copies", 0)


# ---------------------------------------------------------------------- attention
def attention_model(biased: bool, dtype: int) -> Any:
    """GroupQueryAttention as a model: queries, keys and values of a prompt in, outputs and the cache out."""
    from onnx import TensorProto, helper

    packed = {"query": HEADS * SIZE, "key": KV_HEADS * SIZE, "value": KV_HEADS * SIZE}
    given = [helper.make_tensor_value_info(n, dtype, ["B", "S", width]) for n, width in packed.items()]
    cache = [helper.make_tensor_value_info(f"past_{n}", dtype, ["B", KV_HEADS, "P", SIZE]) for n in ("key", "value")]
    lengths = [helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"])]
    lengths += [helper.make_tensor_value_info("total", TensorProto.INT32, [1])]
    bias = [helper.make_tensor_value_info("bias", dtype, ["B", 1, "S", "T"])] if biased else []
    names = [*packed, "past_key", "past_value", "lengths", "total", "", "", *(["", "bias"] if biased else [])]
    sizes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS}
    node = helper.make_node("GroupQueryAttention", names, ["y", "k", "v"], domain="com.microsoft", **sizes)
    out = [helper.make_tensor_value_info("y", dtype, ["B", "S", HEADS * SIZE])]
    out += [helper.make_tensor_value_info(n, dtype, ["B", KV_HEADS, "T", SIZE]) for n in ("k", "v")]
    graph = helper.make_graph([node], "attention", [*given, *cache, *lengths, *bias], out)
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def exact_attention(query: Tensor, key: Tensor, value: Tensor, some: Tensor) -> Tensor:
    """PyTorch's, in float64, for some of the queries."""
    q, k, v = (t.double().unflatten(-1, (-1, SIZE)).transpose(1, 2) for t in (query[:, some], key, value))
    seen = torch.arange(key.shape[1], device=key.device) <= some[:, None]
    mixed = F.scaled_dot_product_attention(
        q, *(t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v)), attn_mask=seen
    )
    return mixed.transpose(1, 2).flatten(2)


def attention(rows: Rows, device: str, small: bool) -> None:
    """With a bias and without."""
    cases = [(t, biased) for t in ((64,) if small else (2048, 8192)) for biased in (False, True)]
    for tokens, biased in rows.todo(
        cases, lambda c: f"attention of {c[0]} tokens {'with' if c[1] else 'without'} a bias"
    ):
        one_attention(rows, device, tokens, biased)


def one_attention(rows: Rows, device: str, tokens: int, biased: bool) -> None:
    import onnxruntime as ort

    providers = ["CPUExecutionProvider"] if device == "cpu" else [("CUDAExecutionProvider", {"use_tf32": "0"})]
    model = attention_model(biased, 1 if device == "cpu" else 10)
    dtype = torch.float32 if device == "cpu" else torch.float16
    random = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, tokens, n * SIZE, generator=random).to(dtype) for n in (HEADS, KV_HEADS, KV_HEADS)
    )
    feeds = {"query": query.numpy(), "key": key.numpy(), "value": value.numpy(), "total": np.array([tokens], np.int32)}
    feeds |= {f"past_{n}": np.zeros((1, KV_HEADS, 0, SIZE), feeds["query"].dtype) for n in ("key", "value")}
    feeds["lengths"] = np.array([tokens - 1], np.int32)
    feeds |= {"bias": np.zeros((1, 1, tokens, tokens), feeds["query"].dtype)} if biased else {}
    before = held_bytes(device)
    session = ort.InferenceSession(model.SerializeToString(), providers=providers)
    some = torch.linspace(0, tokens - 1, 16).long()
    got = torch.from_numpy(session.run(["y"], feeds)[0])[:, some]
    exact = exact_attention(query, key, value, some)
    rows.figure("device memory after it", round((held_bytes(device) - before) / 2**20, 1), "MiB")
    rows.check("GroupQueryAttention", float((got.double() - exact).norm() / exact.norm()), "relative error", 5e-3)
    binding = bound(session, feeds, device)
    rows.figure("GroupQueryAttention", round(clock_ms(lambda: session.run_with_iobinding(binding)), 4), "ms")


def bound(session: Any, feeds: dict[str, np.ndarray], device: str) -> Any:
    """Inputs on the device, outputs left there; two small integers are read on the host."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value, "cpu" if name == "total" else device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    return binding


def clock_ms(call: Callable[[], Any]) -> float:
    """Median of a call's time; ONNX Runtime waits for the device at its end."""
    call()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def held_bytes(device: str) -> int:
    """What all processes hold of the device's memory."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


# ---------------------------------------------------------------------- memory
def memory(rows: Rows, device: str, folders: dict[str, Path]) -> None:
    """An engine with 4-bit weights: how often it holds them."""
    names = [name for name in folders if name.endswith("/int4") and (device == "cpu" or name.startswith(LARGE))]
    for name in rows.todo(names[:1], lambda n: f"memory of {n}"):
        facts = fill(folders[name])
        before = held_bytes(device)
        if device == "cpu":
            held = on_stand_in(folders[name], facts.target)["loaded_bytes"]
        else:
            engine = opened(folders[name], facts.target)
            held = held_bytes(device) - before
            engine.close()
        weights = (folders[name] / DATA).stat().st_size
        rows.figure("weights", weights, "bytes")
        rows.figure("held on the device", held, "bytes", times=round(held / weights, 2))
        rows.aim("weights, of what is held", round(weights / max(held, 1), 3), "of it", ONE_COPY)
