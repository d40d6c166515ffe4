"""What `decoder_cpu.py` compares: one causal language model, and every way to continue a text with it.

Each contestant is `make(folder) -> prefill, step`: `prefill(ids)` starts a text and returns the logits of its last
token, `step(token)` appends one token and returns the next logits, both as numpy `[vocabulary]`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoder_models import VOCABULARY

from moec.execution.machine import cores

Run = tuple[Callable[[Any], Any], Callable[[int], Any]]


def once(folder: Path, name: str, make: Callable[[Path], Any]) -> Path:
    """What `make` writes to a path, beside the model and only once: the processes of another sitting find it there."""
    path = folder.with_name(name)
    if not path.exists():
        beside = Path(tempfile.mkdtemp(prefix="moec-bench-")) / name
        make(beside)
        beside.rename(path)
    return path


# ---------------------------------------------------------------------- PyTorch
def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def eager(folder: Path, implementation: str = "") -> Run:
    """transformers as it is, with its own cache; `implementation` of the experts, or its default."""
    from transformers import DynamicCache

    model, state = load(folder), {}
    if implementation:
        model.set_experts_implementation(implementation)

    def forward(ids: torch.Tensor) -> Any:
        output = model(input_ids=ids, past_key_values=state["cache"], use_cache=True)
        return output.logits[0, -1].numpy()

    def prefill(ids: Any) -> Any:
        state["cache"] = DynamicCache(config=model.config)
        return forward(torch.from_numpy(ids))

    return prefill, lambda token: forward(torch.tensor([[token]]))


def compiled(folder: Path) -> Run:
    """`torch.compile` as transformers documents it: a cache of fixed size, one graph for the prompt and one for a
    token."""
    from transformers import StaticCache

    model = load(folder)
    cache, state = StaticCache(config=model.config, max_cache_len=640), {"at": 0}
    graph = torch.compile(model.forward, dynamic=False)

    def forward(ids: torch.Tensor) -> Any:
        places = torch.arange(state["at"], state["at"] + ids.shape[1])
        state["at"] += ids.shape[1]
        return (
            graph(input_ids=ids, past_key_values=cache, position_ids=places[None], use_cache=True).logits[0, -1].numpy()
        )

    def prefill(ids: Any) -> Any:
        cache.reset()
        state["at"] = 0
        return forward(torch.from_numpy(ids))

    return prefill, lambda token: forward(torch.tensor([[token]]))


# ---------------------------------------------------------------------- ONNX Runtime
def moec_engine(folder: Path, optimize_for: str = "latency", kernels: str = "runtime") -> Run:
    """What a user gets from `moec.compile`; `kernels=moec` needs `make kernels`."""
    import moec

    target = f"onnxruntime:kernels={kernels},threads={cores()}"
    out = once(
        folder,
        f"moec-{optimize_for}-{kernels}",
        lambda out: moec.compile(str(folder), out=out, target=target, optimize_for=optimize_for, layout="plain"),
    )
    return continued(moec.load(out))


def continued(engine: Any) -> Run:
    """A text of moec's own runner."""
    from moec.execution.generation import continuation

    state: dict[str, Any] = {}

    def step(ids: Any) -> Any:
        state["length"] += ids.shape[1]
        return state["text"].step(ids, np.ones((1, state["length"]), np.int64))[0]

    def prefill(ids: Any) -> Any:
        state.update(text=continuation(engine), length=0)
        return step(ids)

    return prefill, lambda token: step(np.array([[token]]))


def transformers_engine(folder: Path, int8: bool = False) -> Run:
    """transformers' exporter with its fusions for the CPU: one graph for the prompt, another for a token; `int8` with
    the quantizer that needs no data, its only kind for weights alone."""
    import onnxruntime as ort
    from transformers import exporters
    from transformers.exporters import exporter_onnx

    def export(out: Path) -> None:
        exporter: Any = exporter_onnx
        ids = torch.arange(3, 12)[None]
        quantizer = {"quantizer": exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig())} if int8 else {}
        config = exporter.OnnxConfig(dynamic=True, ort_fusions="cpu", **quantizer)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        exporter.OnnxExporter().export_for_generation(load(folder), inputs, config=config).save_pretrained(out)

    out = once(folder, "transformers-int8" if int8 else "transformers", export)
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    sessions = {
        name: ort.InferenceSession(f"{out}/{name}.onnx", options, providers=["CPUExecutionProvider"])
        for name in ("prefill", "decode")
    }
    names = [o.name.replace("output.", "input.") for o in sessions["decode"].get_outputs()]
    state: dict[str, Any] = {}

    def run(name: str, ids: Any) -> Any:
        places = np.arange(state["at"], state["at"] + ids.shape[1])[None]
        feeds = {"input_ids": ids, "position_ids": places, **(state["cache"] if name == "decode" else {})}
        wanted = {i.name for i in sessions[name].get_inputs()}
        values = sessions[name].run(None, {k: v for k, v in feeds.items() if k in wanted})
        state["at"] += ids.shape[1]
        state["cache"] = dict(zip(names[1:], values[1:], strict=True))
        return values[0][0, -1]

    def prefill(ids: Any) -> Any:
        state["at"] = 0
        return run("prefill", ids)

    return prefill, lambda token: run("decode", np.array([[token]]))


def genai(folder: Path, builder: bool, precision: str = "fp32", *options: str) -> Run:
    """onnxruntime-genai, on the model of its own builder (`options` are its own) or on moec's engine."""
    import onnxruntime_genai as og

    def build(out: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            folder,
            "-o",
            out,
            "-p",
            precision,
            "-e",
            "cpu",
            "-c",
            out.parent,
        ]
        command += ["--extra_options", *options] if options else []
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        path = out / "genai_config.json"  # every core for everybody: its runtime's default is half of them
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = cores()
        path.write_text(json.dumps(config))

    def compile_(out: Path) -> None:
        import moec

        moec.compile(str(folder), out=out)

    out = (
        once(folder, "-".join(["builder", precision, *options]), build)
        if builder
        else once(folder, "moec-genai", compile_)
    )
    model, state = og.Model(str(out)), {}

    def prefill(ids: Any) -> Any:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=640, do_sample=False)
        state["text"] = og.Generator(model, params)
        state["text"].append_tokens(ids.astype(np.int32))
        return np.asarray(state["text"].get_logits()).reshape(-1, VOCABULARY)[-1]

    def step(token: int) -> Any:
        state["text"].append_tokens(np.array([[token]], np.int32))
        return np.asarray(state["text"].get_logits()).reshape(-1, VOCABULARY)[-1]

    return prefill, step


def llama_cpp(folder: Path, q4: bool = False) -> Run:
    """llama.cpp on the same weights in float32, or in its `q4_0`, with every core."""
    from gguf_of_folder import quantize_gguf, write_gguf
    from llama_cpp import Llama

    full = once(folder, "model.gguf", lambda out: write_gguf(folder, out))
    path = once(folder, "model-q4.gguf", lambda out: quantize_gguf(full, out)) if q4 else full
    model = Llama(
        str(path),
        n_ctx=640,
        n_batch=512,
        n_ubatch=512,
        n_threads=cores(),
        n_threads_batch=cores(),
        type_k=0,
        type_v=0,
        logits_all=False,
        verbose=False,
    )  # type 0: float32

    def step(ids: list[int]) -> Any:
        model.eval(ids)
        return np.ctypeslib.as_array(model._ctx.get_logits(), (model.n_vocab(),)).copy()

    def prefill(ids: Any) -> Any:
        model.reset()
        model._ctx.kv_cache_clear()
        return step(ids[0].tolist())

    return prefill, lambda token: step([token])


CONTESTANTS: dict[str, Callable[[Path], Run]] = {
    "moec": moec_engine,
    "moec throughput": lambda folder: moec_engine(folder, "throughput"),
    "moec, own kernel": lambda folder: moec_engine(folder, kernels="moec"),
    "moec in genai": lambda folder: genai(folder, builder=False),
    "eager": eager,
    "grouped_mm": lambda folder: eager(folder, "grouped_mm"),
    "compile": compiled,
    "OnnxExporter": transformers_engine,
    "genai builder": lambda folder: genai(folder, builder=True),
    "llama.cpp": llama_cpp,
}
DENSE_ONLY, MOE_ONLY = ("genai builder",), ("grouped_mm", "moec throughput", "moec, own kernel")
