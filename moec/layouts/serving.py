"""How another engine serves what was written for it: its command, and what of the settings it is known to lack a kernel
for.

What vLLM takes is what its releases were seen to do: version 0.32, on a CPU; on a GPU what its packed kernels say they
read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_BITS, _GROUPS = (4, 8), (32, 64, 128)


@dataclass(frozen=True)
class Serving:
    """One way to serve: the `engine`, a `command` to type, and `notes` on what does not go."""

    engine: str
    command: str
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a terminal."""
        return [f"serve with {self.engine}: {self.command}", *(f"  but {note}" for note in self.notes)]


def serving_of(checkpoint: str | Path | None, file: str | Path | None) -> list[Serving]:
    """How what was written is served.

    Args:
        checkpoint: a folder of `save_hf`, or None. file: of `save_gguf`, or None.
    """
    found = [] if checkpoint is None else [_by_vllm(Path(checkpoint))]
    return found if file is None else [*found, _by_llama_cpp(Path(file))]


def _by_vllm(folder: Path) -> Serving:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    parts = ["vllm", "serve", shlex.quote(str(folder))]
    own_code = bool(config.get("auto_map"))
    notes = ["vLLM has no class for carved models, only transformers runs them"] if own_code else []
    mixture = any(config.get(name) for name in _COUNTS)
    if mixture and not own_code:
        parallel = "--tensor-parallel-size N --enable-expert-parallel"
        notes.append(f"on several GPUs add {parallel}; vLLM's CPU build (0.32) crashes with the latter")
    packed = config.get("quantization_config")
    return Serving("vLLM", " ".join(parts), (*notes, *(_lacking(packed, mixture) if packed else ())))


def _lacking(packed: Mapping[str, Any], mixture: bool) -> Iterator[str]:
    """What of a compressed-tensors config vLLM has no kernel for."""
    for group in packed["config_groups"].values():
        weights = group["weights"]
        experts = mixture and ("Linear" in group["targets"] or any("experts" in t for t in group["targets"]))
        head = any(target.endswith("lm_head") for target in group["targets"])
        if weights["num_bits"] not in _BITS:
            yield f"it has no kernel for {weights['num_bits']} bits: write bits=4 or bits=8"
        elif weights["group_size"] not in _GROUPS:
            yield f"it has no kernel for groups of {weights['group_size']}: write group=32, 64 or 128"
        elif experts and not weights["symmetric"]:
            yield "its kernels for experts have no zero points: write symmetric=True"
        elif experts and weights["num_bits"] == 4:  # 8 bits were not tried
            yield "its CPU build (0.32) has no kernel for experts of 4 bits ('No WNA16 MoE backend')"
        if head:
            yield "its CPU build (0.32) has no kernel for a quantized head: write lm_head=16"


def _by_llama_cpp(file: Path) -> Serving:
    from gguf import GGUFReader

    model = GGUFReader(file).fields["tokenizer.ggml.model"].contents()
    notes = ("the file has no vocabulary, and llama-server reads texts; token ids go in by llama.cpp's library",)
    return Serving("llama.cpp", f"llama-server -m {shlex.quote(str(file))}", notes if model == "none" else ())
