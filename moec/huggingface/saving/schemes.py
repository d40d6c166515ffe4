"""How the modules of a checkpoint are stored, and which of them servers compute as one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from moec.errors import MoecError
from moec.weights.weight import FloatCodes, Weight

EXPERT = re.compile(r"(.*\.experts)\.\d+\.")
FUSED = {  # what servers make one product of, by the name that they give it
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_FIX = "quantize everything in a layer alike, or compile without --save-hf"


@dataclass(frozen=True)
class Scheme:
    """How one module's weight is stored."""

    num_bits: int
    group_size: int
    symmetric: bool
    format: str = "int"

    def __str__(self) -> str:
        return f"{self.num_bits} bits in groups of {self.group_size}" if self.format == "int" else self.format


FLOATS = {"fp8": Scheme(8, 0, True, "fp8"), "nvfp4": Scheme(4, 16, True, "nvfp4")}


def tables_of(stored: Mapping[str, Weight]) -> frozenset[str]:
    """Names of embeddings, which are stored as the numbers that they stand for: servers look rows up in plain
    tables."""
    return frozenset(name for name in stored if name.endswith(("embed_tokens.weight", "wte.weight")))


def schemes_of(stored: Mapping[str, Weight], tables: frozenset[str]) -> dict[str, Scheme | None]:
    """Each module that has a matrix, and how that is stored; None for plain numbers."""
    return {
        name.removesuffix(".weight"): _scheme(w)
        for name, w in stored.items()
        if name.endswith(".weight") and len(w.shape) == 2 and name not in tables
    }


def _scheme(weight: Weight) -> Scheme | None:
    coded = weight.coded
    if isinstance(coded, FloatCodes):
        return FLOATS[coded.format]
    return None if coded is None else Scheme(coded.bits, weight.shape[-1] // coded.scale.shape[-1], coded.zero is None)


def most_common(modules: Mapping[str, Scheme | None]) -> Scheme | None:
    """The scheme of most experts; where none is packed, of most modules; None where none of those is."""
    packed = {name: s for name, s in modules.items() if s is not None}
    kinds = Counter(s for name, s in packed.items() if EXPERT.match(name)) or Counter(packed.values())
    return next((scheme for scheme, _ in kinds.most_common(1)), None)


def check_fused(modules: Mapping[str, Scheme | None], where: str) -> None:
    """Raise M206 when modules that servers compute as one are stored differently."""
    together: dict[tuple[str, str], set[Scheme | None]] = {}
    for name, scheme in modules.items():
        experts, (path, _, leaf) = EXPERT.match(name), name.rpartition(".")
        keys = [(experts[1], "")] if experts else [(path, one) for one, parts in FUSED.items() if leaf in parts]
        for key in keys:
            together.setdefault(key, set()).add(scheme)
    for (path, _), schemes in together.items():
        if len(schemes) > 1:
            said = " and ".join(sorted("unquantized" if s is None else str(s) for s in schemes))
            what = f"parts of {path} that servers compute as one are stored differently: {said}"
            raise MoecError("M206", f"cannot save the program as a quantized checkpoint: {what}", where, _FIX)
