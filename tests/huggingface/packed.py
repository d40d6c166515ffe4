"""Quantized checkpoints for tests: written by moec, and read by the format's own library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from moec import open_source
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program

SIZES = {"batch": 2, "sequence": 9}


def write(
    model: Path, text: str, folder: Path, hf_format: str = "compressed-tensors", dtype: torch.dtype = torch.float32
) -> tuple[HuggingFaceSource, Program]:
    """Quantize a model's folder, captured in a dtype, and save it; returns its source and the program that was
    saved."""
    source = open_source(str(model))
    program = Pipeline.parse(text).run(source.capture(dtype))[0]
    save_hf(program, folder, source, hf_format=hf_format)
    return source, program


def logits_of(run: Any, source: HuggingFaceSource) -> Tensor:
    """The logits of real tokens: what is computed at padding is nobody's business."""
    sample = source.sample(SIZES)
    return run(**sample)["logits"][sample["attention_mask"].bool()]  # type: ignore[no-any-return]


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def read_by_library(folder: Path) -> dict[str, Tensor]:
    """Every weight that is packed, as compressed-tensors decompresses it. Import that library before, or skip."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name

    config, stored, found = QuantizationConfig.model_validate(config_of(folder)), tensors(folder), {}
    packed = [n.removesuffix(".weight_scale") for n in stored if n.endswith(".weight_scale")]
    for name in packed:
        assert not any(match_name(name, target) for target in config.ignore or [])
        groups = list(config.config_groups.values())
        named = [g for g in groups if any(match_name(name, target) for target in g.targets)]
        scheme = (named or [g for g in groups if "Linear" in g.targets])[0]
        local = {n.removeprefix(f"{name}."): t for n, t in stored.items() if n.startswith(f"{name}.")}
        found[f"{name}.weight"] = BaseCompressor.get_value_from_registry(scheme.format).decompress(local, scheme)[
            "weight"
        ]
    return found


def same_bytes(one: Program, two: Program) -> set[str]:
    """Names of weights of `one` that `two` lacks or holds with other bytes."""
    return {n for n, w in one.weights.items() if n not in two.weights or not _same(w.load(), two.weights[n].load())}


def _same(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and torch.equal(one, two)
