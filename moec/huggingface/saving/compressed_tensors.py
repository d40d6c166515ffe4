"""Quantized weights in the compressed-tensors form, which vLLM and other servers load: the same codes and scales.

What the form has no place for is refused: moec never rounds anew. The form allows more than vLLM's kernels read, which
is 4 and 8 bits in groups of 32, 64 or 128, for experts without zero points. Scales of symmetric grids may be negative,
see `moec.quantization.rounding.encode`: reading is a product, whose sign they carry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.huggingface.compressed_floats import FORMS
from moec.huggingface.formats.compressed_tensors import FORMAT, METHOD, PACKED, SCALE, SHAPE, ZERO
from moec.huggingface.saving.float_tensors import check_common, float_tensors, weights_entry
from moec.huggingface.saving.schemes import EXPERT, Scheme, check_fused, most_common, schemes_of, tables_of
from moec.program.program import META
from moec.weights.lazy import Weight, from_tensor, rowwise, whole
from moec.weights.weight import FloatCodes


def in_packed_form(config: Any, stored: Mapping[str, Weight], where: str) -> tuple[Any, dict[str, Weight]]:
    """A config that says how its weights are packed, and the tensors of the files.

    Raises:
        MoecError: M206 when modules that servers compute as one are stored differently.
    """
    tables = tables_of(stored)
    modules = schemes_of(stored, tables)
    check_fused(modules, where)
    check_common(stored, where)
    first = most_common(modules)
    if first is not None:  # else only embeddings are packed, which are stored plain
        config.quantization_config = quantization_config(modules, first)
    return config, packed_tensors(stored, tables)


def packed_tensors(stored: Mapping[str, Weight], tables: frozenset[str]) -> dict[str, Weight]:
    """The tensors of the files, those that are packed as four: integers, scales, zero points where there are any, and
    the shape.

    Args:
        stored: by name in the files.
        tables: names of embeddings, which stay plain, see `tables_of`.
    """
    found: dict[str, Weight] = {}
    for name, weight in stored.items():
        coded = weight.coded
        if coded is None or name in tables:
            found[name] = weight
            continue
        if isinstance(coded, FloatCodes):
            found |= float_tensors(name, coded)
            continue
        found[name + PACKED] = rowwise("words", as_words, coded.packed)
        found[name + SCALE] = coded.scale
        if coded.zero is not None:
            found[name + ZERO] = whole(f"words[{coded.bits}]", _row_words(coded.bits), coded.zero)
        found[name + SHAPE] = from_tensor(torch.tensor(weight.shape), f"shape{list(weight.shape)}")
    return found


def as_words(codes: Tensor) -> Tensor:
    """uint8 `[…, n]` as int32 `[…, n/4]`, filled up with zeros."""
    full = F.pad(codes, (0, -codes.shape[-1] % 4))
    return (
        full.new_empty((*full.shape[:-1], full.shape[-1] // 4), dtype=torch.int32)
        if full.device == META
        else full.contiguous().view(torch.int32)
    )


def _row_words(bits: int) -> Any:
    def pack_rows(numbers: Tensor) -> Tensor:
        """uint8 `[out, n]` packed along `out` as int32 `[out*bits/32, n]`, lowest bits first."""
        many = 32 // bits
        full = F.pad(numbers, (0, 0, 0, -numbers.shape[0] % many)).to(torch.int64).reshape(-1, many, numbers.shape[1])
        shifts = torch.arange(0, 32, bits, device=numbers.device)
        return (full << shifts[:, None]).sum(1).to(torch.int32)

    return pack_rows


def quantization_config(modules: Mapping[str, Scheme | None], first: Scheme) -> dict[str, Any]:
    """What config.json has to say of `packed_tensors`; `first` is the scheme of most, and of experts where any is
    packed. These have a group by name where another group has one: transformers (5.23) would take that one's scheme for
    them."""
    groups = [(first, ["Linear"])]
    others = sorted({s for s in modules.values() if s not in (None, first)}, key=str)
    experts = [name for name, own in modules.items() if own == first and EXPERT.match(name)]
    groups = [(first, _targets(experts))] * bool(others and experts) + groups
    groups = [
        (s, _targets([name for name, own in modules.items() if own == s])) for s in others if s is not None
    ] + groups  # names before classes
    head = [name for name in modules if name.endswith("lm_head")]
    forms = {_form(scheme) for scheme, _ in groups}
    return {
        "quant_method": METHOD,
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {
            f"group_{i}": _group(s, names + [h for h in head if modules[h] == s and h not in names])
            for i, (s, names) in enumerate(groups)
        },
        "ignore": _targets([name for name, scheme in modules.items() if scheme is None]),
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.num_bits,
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
        "type": "int",
        "strategy": "group",
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
    }
    return {
        "targets": targets,
        "weights": weights if scheme.format == "int" else weights_entry(scheme),
        "input_activations": None,
        "output_activations": None,
        "format": _form(scheme),
    }


def _form(scheme: Scheme) -> str:
    return FORMS.get(scheme.format, FORMAT)


def _targets(names: list[str]) -> list[str]:
    """Modules by name, the experts of a layer by one pattern: servers know them under other names."""
    found = [re.sub(EXPERT, lambda m: f"re:{re.escape(m[1])}\\..*|", name).partition("|")[0] for name in names]
    return list(dict.fromkeys(found))
