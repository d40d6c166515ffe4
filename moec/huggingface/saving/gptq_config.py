"""What config.json says of a checkpoint in GPTQ's form: one scheme for most modules, and rules for the others.

Rules are GPTQModel's (`dynamic`): regular expressions that the start of a module's name has to match, the first that
does decides; `-:` leaves modules plain, `+:` gives them other bits. vLLM reads them too, but by the names of the
modules that it makes one of several. transformers reads no rules: it gets the names of what is quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from moec.huggingface.saving.schemes import EXPERT, FUSED, Scheme

_LAYER = re.compile(r"\\\.\d+\\\.")  # in a pattern of a name


def quantization_config(modules: Mapping[str, Scheme | None], first: Scheme) -> dict[str, Any]:
    """The entry of config.json.

    Args:
        modules: how each is stored, None for plain numbers. first: the scheme of most.
    """
    packed = {name: scheme for name, scheme in modules.items() if scheme is not None}
    symmetric = all(scheme.symmetric for scheme in packed.values())
    found: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if symmetric else "gptq_v2",
        **_said(first),
        "desc_act": False,
        "pack_dtype": "int32",
        "lm_head": any(name.endswith("lm_head") for name in packed),
        "dynamic": _rules(modules, first),
    }
    plain = [name for name, scheme in modules.items() if scheme is None and not name.endswith("lm_head")]
    if plain and not any(EXPERT.match(name) for name in modules):  # transformers reads no experts in this form
        found["modules_in_block_to_quantize"] = [list(packed)]
    return found


def _said(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.num_bits, "group_size": scheme.group_size, "sym": scheme.symmetric}


def _rules(modules: Mapping[str, Scheme | None], first: Scheme) -> dict[str, dict[str, Any]]:
    """Patterns of the modules that are not as most are; a plain head has no rule, see `lm_head`."""
    others = dict.fromkeys(scheme for scheme in modules.values() if scheme != first)
    found: dict[str, dict[str, Any]] = {}
    for scheme in others:
        names = [n for n, own in modules.items() if own == scheme and (scheme is not None or not n.endswith("lm_head"))]
        rest = [n for n, own in modules.items() if own != scheme]
        said = {} if scheme is None else _said(scheme)
        found |= {f"{'-' if scheme is None else '+'}:{pattern}": said for pattern in _patterns(names, rest)}
    return found


def _patterns(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Regular expressions that all names match and no other does: one for every layer, where it can be."""
    taken = {_of_all(_of_one(name)) for name in others}
    found = [_of_one(name) for name in names]
    return list(dict.fromkeys(one if _of_all(one) in taken else _of_all(one) for one in found))


def _of_all(pattern: str) -> str:
    """The same pattern for every layer."""
    return _LAYER.sub(lambda _: r"\.\d+\.", pattern)


def _of_one(name: str) -> str:
    """A pattern of the module that servers make of this one and others."""
    experts = EXPERT.match(name)
    if experts:
        return re.escape(experts[1]) + r"(\.|$)"
    path, _, leaf = name.rpartition(".")
    for one, parts in FUSED.items():
        if leaf in parts:
            return re.escape(path) + rf"\.({'|'.join((*parts, one))})$"
    return re.escape(name) + "$"
