"""Engines for CUDA in half precision, run on the CPU and compared with the program in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.backends.onnxruntime.attention.token_order import masks
from moec.backends.onnxruntime.backend import Onnxruntime
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import IDS, MASK, PAST, cache_inputs, without_padding
from moec.program.program import Program
from moec.targets.target import Target
from tests.backends.onnxruntime.blocks import error
from tests.zoo import VOCAB, build

CUDA, CPU = Target.parse("onnxruntime:cuda,precision=fp16"), Target.parse("onnxruntime:precision=fp16")
LIMIT = 0.02  # max |d|/std of float16 against float32; found 0.002 to 0.009
WINDOW = 5
# texts, new tokens, earlier ones
SIZES = [(6, 9, 0), (1, 1, 0), (6, 1, WINDOW - 1), (6, 1, WINDOW), (6, 1, WINDOW + 1), (6, 4, 3), (1, 3, WINDOW)]
# heads as wide as CUDA's kernels want them; gpt-oss has narrow ones, and asks all experts: a near tie says nothing of
# attention
CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"num_hidden_layers": 1, "head_dim": 64},
    "gpt_oss": {"num_local_experts": 2},
    "gemma2": {"head_dim": 16},
}


def sample(program: Program, batch: int, new: int, past: int) -> dict[str, Tensor]:
    """Random tokens and cache in float16, padding everywhere."""
    generator = torch.Generator().manual_seed(batch + new + past)
    found = {IDS: torch.randint(3, VOCAB, (batch, new), generator=generator), MASK: masks(past, new)[:batch]}
    for spec in cache_inputs(program.inputs):
        found[spec.name] = torch.randn(spec.resolve({"batch": batch, PAST: past}), generator=generator).half()
    return found


@dataclass
class Made:
    """An engine, and the program captured anew from the untouched model."""

    folder: Path
    facts: dict[str, Any]
    program: Program
    eager: Any

    def worst(self, size: tuple[int, int, int], folder: Path | None = None) -> float:
        """The largest error of logits and cache; of the engine in another folder, if that is given."""
        given = sample(self.program, *size)
        wide = [v.float() if v.is_floating_point() else v for v in (given[i.name] for i in self.program.inputs)]
        want = dict(zip(self.program.outputs, self.eager(*wide), strict=True))
        found = OnnxruntimeEngine(folder or self.folder, CPU)(**given)
        pairs = ([without_padding(v[n].float(), given, n, self.program.inputs) for v in (found, want)] for n in want)
        return max(error(*pair) for pair in pairs)


def make_engine(name: str, folder: Path) -> Made:
    """Build the engine of a model of the zoo."""
    source = HuggingFaceSource.from_model(build(name, **CHANGES[name]))
    facts = Onnxruntime().build(source.capture(torch.float16), CUDA, folder)
    program = source.capture(torch.float32)
    return Made(folder, facts, program, program.module("cpu"))
