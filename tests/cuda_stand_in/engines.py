"""Engines to look at on the stand-in: the models of `tests.zoo`, at sizes that CUDA's kernels take, each in several
forms. They are built as `moec.compile` builds them, and not proven: what they compute is proven elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moec.backends.onnxruntime.backend import Onnxruntime
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.target import Target
from tests.zoo import build

# the zoo's are too small for kernels: integers of 4 and 8 bits want multiples of 64, flash attention heads of 64
_SIZES: dict[str, Any] = {"hidden_size": 256, "vocab_size": 128, "num_attention_heads": 4, "intermediate_size": 128}
_HEADS: dict[str, Any] = {"head_dim": 64}
_MLA: dict[str, Any] = {
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}
_FINE: dict[str, Any] = {"moe_intermediate_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {**_HEADS, **_FINE},
    "gpt_oss": {**_HEADS, "intermediate_size": 64, "sliding_window": 8},
    "deepseek_v3": {**_MLA, **_FINE},
    "olmoe": {"intermediate_size": 64},
    "llama": {},
    "bert": {},
    "vit": {"hidden_size": 256, "intermediate_size": 128},
}


@dataclass(frozen=True)
class Form:
    """In which numbers an engine computes and holds its weights."""

    precision: str
    passes: str = ""

    @property
    def target(self) -> str:
        return f"onnxruntime:cuda,precision={self.precision}"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.precision == "fp16" else torch.float32


FORMS = {
    "fp32": Form("fp32"),
    "fp16": Form("fp16"),
    "int4": Form("fp16", "quantize(bits=4)"),
    "int8": Form("fp16", "quantize(bits=8)"),
    "int4-fp32": Form("fp32", "quantize(bits=4)"),
}


def layered(name: str, layers: int) -> dict[str, Any]:
    """What makes a model of so many layers that are alike: DeepSeek's first ones, without experts, are left out."""
    more = {"first_k_dense_replace": 0} if name == "deepseek_v3" else {}
    return {**({} if name == "vit" else _SIZES), **MODELS.get(name, {}), "num_hidden_layers": layers, **more}


def make(name: str, form: str, folder: Path, layers: int = 2, **changes: Any) -> str:
    """Build the engine of a model into a folder; returns its target. `changes` are entries of the model's config.

    Raises what a compile raises where the form is refused.
    """
    return lower(captured(name, FORMS[form].dtype, layers, **changes), form, folder)


def captured(name: str, dtype: torch.dtype, layers: int = 2, **changes: Any) -> Program:
    """The model's program, which all forms of that dtype share; a decoder's with its cache, unless `cache` is false."""
    cache = changes.pop("cache", True)
    return HuggingFaceSource.from_model(build(name, **{**layered(name, layers), **changes}), cache=cache).capture(dtype)


def lower(program: Program, form: str, folder: Path) -> str:
    """Build the engine of a program, which is left as it is, into a folder; returns its target."""
    target, backend = Target.parse(FORMS[form].target), Onnxruntime()
    passes = Pipeline.parse(", ".join(filter(None, ["find-moe, fuse-moe", FORMS[form].passes]))).all_optional()
    for pipeline in (passes, backend.legalize(target)):
        program, _ = pipeline.run(program, Context(seed=0), [])
    folder.mkdir(parents=True, exist_ok=True)
    backend.build(program, target, folder)
    return str(target)
