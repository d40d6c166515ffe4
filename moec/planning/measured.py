"""Kernel times that others measured: the tables of the package `aiconfigurator-core` (NVIDIA, Apache-2.0), which the
extra `moec[plan]` brings. Its estimates of whole models are not used: those have been off by factors, the times of
single kernels are measurements."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from moec.planning.devices import Device
from moec.planning.formats import Format
from moec.planning.interpolation import Numbers, Table, fastest
from moec.planning.rooflines import (
    absorbed_floor,
    attention_floor,
    exchange_floor,
    experts_floor,
    latent_floor,
    matrix_floor,
    prompt_floor,
)

PACKAGE = "aiconfigurator_core"
SYSTEMS = {
    "a100": "a100_sxm",
    "b200": "b200_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "rtxpro6000": "rtx_pro_6000_server",
}
FRAMEWORKS = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
_INSTALL = "tables of measured kernels are not installed: pip install 'moec[plan]'"
Kind = Literal[
    "matrices",
    "experts",
    "attention",
    "attention of a prompt",
    "latent",
    "latent of a prompt",
    "absorbed keys",
    "absorbed values",
    "exchanges",
]
# what each format of ours is called there, the first that a table has: for matrices, for experts
TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bf16": (("bfloat16",), ("bfloat16",)),
    "fp16": (("bfloat16",), ("bfloat16",)),
    "fp8": (("fp8_block", "fp8"), ("fp8_block", "fp8")),
    "int8": (("int8_wo",), ()),
    "int4": (("int4_wo",), ("int4_wo",)),
    "int4-g128-zero": (("int4_wo",), ("int4_wo",)),
    "mxfp4": ((), ("w4a8_mxfp4_mxfp8", "w4a16_mxfp4")),
    "nvfp4": (("nvfp4",), ("nvfp4",)),
}
# experts of two matrices (Nemotron 3) stand between those of three, and their sizes are the only mark of them
_TWO_MATRICES = ((22, 512), (6, 128))
_NARROW = 128  # widths of an expert below are slices for more devices than anybody would take


@dataclass(frozen=True)
class Tables:
    """What one framework's kernels take on one device.

    Attributes:
        framework: its name and, of every table that was read, the version.
        device: the device.
        format: of the weights.
    """

    framework: str
    device: Device
    format: Format
    _folder: Path = field(repr=False)
    _read: dict[str, Table | None] = field(default_factory=dict, repr=False, compare=False)

    def table(self, kind: Kind) -> Table | None:
        """The table of a kind of kernel; None where nothing was measured."""
        if kind not in self._read:
            self._read[kind] = _READERS[kind](self)
        return self._read[kind]

    def rows(self, operation: str, name: str, where: dict[str, Any], types: Sequence[str] = ()) -> Any:
        """The rows of the version that has most of them, as columns of numpy, and that version; None for none."""
        from pyarrow import parquet

        best: tuple[int, str, Any] | None = None
        for file in sorted(self._folder.glob(f"{operation}/{FOLDERS[self.framework]}/*/{name}.parquet"), key=_age):
            for kind in types or ("",):
                wanted = where | ({_TYPE_COLUMN[operation]: kind} if kind else {})
                rows = parquet.read_table(file, filters=[(k, "=", v) for k, v in wanted.items()])
                if rows.num_rows and (best is None or rows.num_rows >= best[0]):
                    best = (rows.num_rows, file.parent.name, rows)
                if rows.num_rows:
                    break  # the first of the types that this version has
        return None if best is None else ({n: best[2][n].to_numpy() for n in best[2].schema.names}, best[1])


FOLDERS = {name: folder for folder, name in FRAMEWORKS.items()}
_TYPE_COLUMN = {"gemm": "gemm_dtype", "moe": "moe_dtype", "mla_bmm": "bmm_dtype"}


def why_none(device: Device) -> str:
    """Why there are no tables for a device; empty when there are."""
    if device.name not in SYSTEMS:
        return f"nobody's tables hold {device.name}"
    if missing([device.name]):
        return _INSTALL
    return "" if _folder(device).is_dir() else f"the package {PACKAGE} holds nothing of {device.name}"


def missing(devices: Sequence[str]) -> str:
    """What to install for measured times of one of these devices; empty where nothing is to be had."""
    if find_spec(PACKAGE) is not None and find_spec("pyarrow") is not None:
        return ""
    return _INSTALL if any(name in SYSTEMS for name in devices) else ""


@cache
def tables(device: str, format: str) -> tuple[Tables, ...]:
    """The tables of each framework for a device and a format, by name; none where there are none."""
    from moec.planning.devices import find_device
    from moec.planning.formats import FORMATS

    if device not in SYSTEMS or format not in TYPES:
        return ()
    found = find_device(device)
    if why_none(found):
        return ()
    return tuple(Tables(name, found, FORMATS[format], _folder(found)) for name in FRAMEWORKS.values())


def _folder(device: Device) -> Path:
    spec = find_spec(PACKAGE)  # found, not imported: the data is all that is wanted
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0] if places else ".") / "systems" / "data" / SYSTEMS[device.name]


def _age(file: Path) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", file.parent.name)]


def _columns(rows: dict[str, Any], names: Sequence[str]) -> Numbers:
    return np.stack([rows[name].astype(np.float64) for name in names], axis=1)


def _made(asked: Tables, found: Any, sizes: Numbers, floor: Any, weights: tuple[float, ...], keep: Any = None) -> Table:
    rows, version = found
    seconds = rows["latency"].astype(np.float64) / 1e3
    keep = np.ones(len(seconds), bool) if keep is None else keep
    return Table(*fastest(sizes[keep], seconds[keep]), floor, weights, f"{asked.framework} {version}")


def _matrices(asked: Tables) -> Table | None:
    found = asked.rows("gemm", "gemm_perf", {}, TYPES[asked.format.name][0]) if TYPES[asked.format.name][0] else None
    if found is None:
        return None
    return _made(asked, found, _columns(found[0], ("m", "n", "k")), matrix_floor(asked.device, asked.format), (1, 1, 1))


def _experts(asked: Tables) -> Table | None:
    """Sizes: tokens, hidden, width, top_k, experts, distinct experts (a balanced draw), matrices of an expert."""
    types = TYPES[asked.format.name][1]
    found = asked.rows("moe", "moe_perf", {"distribution": "balanced", "moe_ep_size": 1}, types) if types else None
    if found is None:
        return None
    rows = _columns(found[0], ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts"))
    two = np.any([(rows[:, 3] == k) & (rows[:, 4] == e) for k, e in _TWO_MATRICES], axis=0)
    rows[:, 2] /= found[0]["moe_tp_size"]
    touched = np.minimum(rows[:, 4], rows[:, 0] * rows[:, 3])
    sizes = np.column_stack([rows, touched, np.where(two, 2.0, 3.0)])
    weights = (1, 0.5, 0.5, 1, 1, 0, 4)
    return _made(asked, found, sizes, experts_floor(asked.device, asked.format), weights, rows[:, 2] >= _NARROW)


def _attention(asked: Tables, prompt: bool = False) -> Table | None:
    """Sizes: texts, tokens, heads, heads of keys, numbers a head."""
    kind = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
    found = asked.rows("attention", f"{'context' if prompt else 'generation'}_attention_perf", kind)
    if found is None:
        return None
    rows = found[0]
    keep = rows.get("window_size", np.zeros(len(rows["latency"]))) == 0
    names = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim")
    sizes = _columns(rows, names)
    sizes[:, 1] += rows["step"] if not prompt else 0
    sizes[:, 3] = np.where(sizes[:, 3] > 0, sizes[:, 3], sizes[:, 2])
    floor = prompt_floor(asked.device) if prompt else attention_floor(asked.device)
    return _made(asked, found, sizes, floor, (1, 1, 1, 1, 4), keep)


def _latent(asked: Tables, prompt: bool = False) -> Table | None:
    """Sizes: texts, tokens, heads; a cache of 512 + 64 numbers a token, as DeepSeek-V3's."""
    name = f"{'context' if prompt else 'generation'}_mla_perf"
    found = asked.rows("mla", name, {"mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"})
    if found is None:
        return None
    sizes = _columns(found[0], ("batch_size", "isl", "num_heads"))
    sizes[:, 1] += found[0]["step"]
    return _made(asked, found, sizes, latent_floor(asked.device, prompt), (1, 1, 1))


def _absorbed(asked: Tables, half: str) -> Table | None:
    """Sizes: tokens, heads: a product with the up-projection of the keys (`pre`), or of the values (`post`)."""
    found = asked.rows("mla_bmm", "mla_bmm_perf", {"op_name": f"mla_gen_{half}"}, ("bfloat16",))
    if found is None:
        return None
    return _made(asked, found, _columns(found[0], ("num_tokens", "num_heads")), absorbed_floor(asked.device), (1, 1))


def _exchanges(asked: Tables) -> Table | None:
    """Sizes: ranks, numbers of an all-reduce in bf16."""
    found = asked.rows("comm", "custom_allreduce_perf", {"allreduce_dtype": "bfloat16"})
    if found is None:
        return None
    return _made(asked, found, _columns(found[0], ("num_gpus", "message_size")), exchange_floor(asked.device), (4, 1))


_READERS: dict[str, Any] = {
    "matrices": _matrices,
    "experts": _experts,
    "attention": _attention,
    "attention of a prompt": lambda asked: _attention(asked, True),
    "latent": _latent,
    "latent of a prompt": lambda asked: _latent(asked, True),
    "absorbed keys": lambda asked: _absorbed(asked, "pre"),
    "absorbed values": lambda asked: _absorbed(asked, "post"),
    "exchanges": _exchanges,
}


def kinds() -> tuple[Kind, ...]:
    """Every kind of kernel that tables are read of."""
    return get_args(Kind)
