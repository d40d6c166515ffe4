"""How another engine serves what was written for it: its command, and what of the settings it is known to lack a kernel
for.

What vLLM takes is what its releases were seen to do: version 0.32, on a CPU; on a GPU what its sources say. Of
TensorRT-LLM nothing was run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec.layouts.serving_sizes import ExpertSizes, expert_sizes, lacking_in_tensorrt_llm, lacking_in_vllm

_BITS, _GROUPS = (4, 8), (32, 64, 128)
_EXPERTS = r"\.experts("
_EXPERT = ".experts."  # and not `.shared_experts.`, which are dense
_PACKED = (".weight_scale", ".qweight")
_NVFP4, _OF_MODELOPT = "nvfp4-pack-quantized", "FP8"


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
    found = [] if checkpoint is None else _by_servers(Path(checkpoint))
    return found if file is None else [*found, _by_llama_cpp(Path(file))]


def _by_servers(folder: Path) -> list[Serving]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    packed, sizes = config.get("quantization_config"), expert_sizes(config)
    of_modelopt = packed is not None and packed["quant_method"] == "modelopt"
    experts = packed is not None and _packs_experts(folder)
    first = [_by_tensorrt_llm(folder, packed, sizes, experts)] if of_modelopt else []
    return [*first, _by_vllm(folder, bool(config.get("auto_map")), packed, sizes, experts)]


def _packs_experts(folder: Path) -> bool:
    """Whether experts of any layer are quantized, by the names of the tensors."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:  # type: ignore[no-untyped-call]
            if any(_EXPERT in name and name.endswith(_PACKED) for name in tensors.keys()):  # noqa: SIM118
                return True
    return False


def _by_tensorrt_llm(folder: Path, packed: Mapping[str, Any], sizes: ExpertSizes | None, experts: bool) -> Serving:
    nvfp4 = any(stored.form == _NVFP4 and stored.experts for stored in _by_modelopt(packed, experts))
    lacks = lacking_in_tensorrt_llm(sizes) if sizes is not None and nvfp4 else ()
    return Serving("TensorRT-LLM", f"trtllm-serve {shlex.quote(str(folder))}", ("it was not run", *lacks))


def _by_vllm(
    folder: Path, own_code: bool, packed: Mapping[str, Any] | None, sizes: ExpertSizes | None, experts: bool
) -> Serving:
    notes = ["vLLM has no class for carved models, only transformers runs them"] if own_code else []
    if sizes is not None and not own_code:
        parallel = "--tensor-parallel-size N --enable-expert-parallel"
        notes.append(f"on several GPUs add {parallel}; vLLM's CPU build (0.32) crashes with the latter")
    lacks = dict.fromkeys(_lacking(packed, sizes, experts)) if packed else ()
    return Serving("vLLM", f"vllm serve {shlex.quote(str(folder))}", (*notes, *lacks))


def _lacking(packed: Mapping[str, Any], sizes: ExpertSizes | None, experts: bool) -> Iterator[str]:
    """What of packed weights vLLM has no kernel for; `experts`: whether any are packed."""
    method = packed["quant_method"]
    forms = {"gptq": _by_gptq, "modelopt": _by_modelopt}
    for stored in forms.get(method, _by_compressed_tensors)(packed, experts):
        if stored.form:
            yield from _of_floats(stored)
        else:
            yield from _of_integers(stored, method == "gptq", sizes)
        if sizes is not None and stored.experts and stored.form in ("", _NVFP4):
            yield from lacking_in_vllm(sizes, stored.group or 0, stored.form == _NVFP4)
    named = [g for g in packed.get("config_groups", {}).values() if _names_experts(g)]
    if method == "compressed-tensors" and len({str(group["weights"]) for group in named}) > 1:
        yield "transformers (5.23) reads all experts in one width, others wrongly: quantize those of all layers alike"


def _of_integers(stored: _Stored, gptq: bool, sizes: ExpertSizes | None) -> Iterator[str]:
    if stored.bits not in _BITS:
        yield f"it has no kernel for {stored.bits} bits: write bits=4 or bits=8"
    elif stored.group not in _GROUPS:
        yield f"it has no kernel for groups of {stored.group}: write group=32, 64 or 128"
    elif gptq and not stored.symmetric:
        yield "it reads no zero points in GPTQ's form: write symmetric=True"
    elif stored.experts and not stored.symmetric:
        yield "its kernels for experts have no zero points: write symmetric=True"
    elif stored.experts and stored.bits == 4:  # 8 bits were not tried
        way = "on AMD with AVX-512 pip install zentorch==2.13.0.1"
        if sizes is not None and sizes.top_k == 1:
            way = "zentorch's wants two experts a token"
        yield f"its CPU build (0.32) says 'No WNA16 MoE backend' of experts of 4 bits where there is no AMX; {way}"
    if stored.bits == 8:
        ways = [*(["bits=4"] if stored.others else []), *(["lm_head=16"] if stored.head else [])]
        yield f"its CPU build (0.32) has no kernel for 8 bits: write {', '.join(ways)}"
    if gptq and stored.head:
        yield "transformers (5.23) reads no quantized head in GPTQ's form, and makes up another: write lm_head=16"


def _of_floats(stored: _Stored) -> Iterator[str]:
    """What it lacks for small floats: tried on a CPU, read in its sources for a GPU."""
    nvfp4 = stored.form == _NVFP4
    if stored.form == _OF_MODELOPT:
        yield "it rounds activations to 8 bits, too, which no proof covers; on GPUs this was not run"
        return
    yield f"its CPU build (0.32) has no kernel for {'NVFP4' if nvfp4 else 'FP8'}; on GPUs this was not run"
    if stored.experts and not nvfp4:
        yield "its experts in FP8 want activations of 8 bits, too, which moec does not write: write format=nvfp4"


@dataclass(frozen=True)
class _Stored:
    """How some modules are stored, and whether `experts`, the `head` or `others` are among them. `form`: of small
    floats, else empty."""

    bits: int
    group: int | None
    symmetric: bool
    experts: bool
    head: bool
    others: bool
    form: str = ""


def _by_modelopt(packed: Mapping[str, Any], packs_experts: bool) -> Iterator[_Stored]:
    """One algorithm for all that is not left out, or one for each module."""
    layers = packed.get("quantized_layers") or {"": {"quant_algo": packed["quant_algo"]}}
    for algorithm in dict.fromkeys(layer["quant_algo"] for layer in layers.values()):
        names = [name for name, layer in layers.items() if layer["quant_algo"] == algorithm]
        experts = packs_experts and any(not name or _EXPERT in name for name in names)
        four = "NVFP4" in algorithm
        yield _Stored(4 if four else 8, 16 if four else 0, True, experts, False, True, _NVFP4 if four else _OF_MODELOPT)


def _by_compressed_tensors(packed: Mapping[str, Any], packs_experts: bool) -> Iterator[_Stored]:
    """By its groups; that of most modules has the experts, too, where any are packed."""
    for group in packed["config_groups"].values():
        weights = group["weights"]
        experts = packs_experts and (_names_experts(group) or "Linear" in group["targets"])
        head = any(target.endswith("lm_head") for target in group["targets"])
        others = any(not target.endswith("lm_head") for target in group["targets"])
        form = group["format"] if weights["type"] == "float" else ""
        yield _Stored(weights["num_bits"], weights["group_size"], weights["symmetric"], experts, head, others, form)


def _names_experts(group: Mapping[str, Any]) -> bool:
    """Whether a group of the compressed-tensors form has the experts of a layer by name, with a pattern's backslash."""
    return any(_EXPERT in target.replace("\\", "") for target in group["targets"])


def _by_gptq(packed: Mapping[str, Any], packs_experts: bool) -> Iterator[_Stored]:
    """By the rules of `moec.huggingface.saving.gptq_config`."""
    rules = packed["dynamic"]
    plain = any(rule.startswith("-:") and r"\d+" in rule and _EXPERTS in rule for rule in rules)
    named = {rule: own for rule, own in rules.items() if rule.startswith("+:")}
    head = next((rule for rule in named if rule.startswith("+:lm_head")), "")
    for rule, own in {"": packed, **named}.items():
        experts = packs_experts and (_EXPERTS in rule if rule else not plain)
        here = packed["lm_head"] and rule == head
        yield _Stored(own["bits"], own["group_size"], own["sym"], experts, here, not here or not rule)


def _by_llama_cpp(file: Path) -> Serving:
    from gguf import GGUFReader

    model = GGUFReader(file).fields["tokenizer.ggml.model"].contents()
    notes = ("the file has no vocabulary, and llama-server reads texts; token ids go in by llama.cpp's library",)
    return Serving("llama.cpp", f"llama-server -m {shlex.quote(str(file))}", notes if model == "none" else ())
