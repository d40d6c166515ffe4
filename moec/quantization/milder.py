"""Settings of `quantize` that change less than given ones, for the advice where these changed too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moec.quantization.grid import INTEGERS
from moec.quantization.settings import KEEP

_FINE_GROUP, _FINE_BITS = 32, 8


def milder(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of a `quantize` that changes less, the smallest step first: better scales, smaller groups, attention
    in 8 bits, then all in more bits. Rules stay, for the user wrote them."""
    found: list[dict[str, Any]] = []
    for changes in _changes(options):
        new = {**options, **changes}
        if new != dict(options) and new not in found:
            found.append(new)
    return found


def _changes(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if options["format"] != INTEGERS:
        if options["format"] == "nvfp4":
            yield {"format": "fp8", "bits": _FINE_BITS}
        return
    finer = {
        "method": "hqq" if options["method"] == "rtn" else options["method"],
        "group": min(options["group"], _FINE_GROUP),
    }
    yield finer
    yield {**finer, "attention": _at_least(options["attention"], _FINE_BITS) or _FINE_BITS}
    for bits in (4, _FINE_BITS):
        if options["bits"] < bits or options["budget_bits"] is not None or _narrow(options, bits):
            yield {**finer, **_all_at_least(options, bits)}
    yield {**_all_at_least(options, _FINE_BITS), "group": options["group"]}


def _narrow(options: Mapping[str, Any], bits: int) -> bool:
    named = [options[kind] for kind in _kinds(options)] + [_bits(s) for s in (options.get("recipe") or {}).values()]
    return any(given is not None and given < bits for given in named)


def _bits(setting: int | Mapping[str, Any]) -> int | None:
    return setting.get("bits") if isinstance(setting, Mapping) else setting


def _all_at_least(options: Mapping[str, Any], bits: int) -> dict[str, Any]:
    kinds = {kind: _at_least(options[kind], bits) for kind in _kinds(options)}
    raised: dict[str, Any] = {"bits": _at_least(options["bits"], bits), "budget_bits": None, **kinds}
    if options.get("recipe"):
        raised["recipe"] = {part: _raised(setting, bits) for part, setting in options["recipe"].items()}
    return raised


def _raised(setting: int | Mapping[str, Any], bits: int) -> int | Mapping[str, Any] | None:
    own = _at_least(_bits(setting), bits)
    return {**setting, **({} if own is None else {"bits": own})} if isinstance(setting, Mapping) else own


def _at_least(own: int | None, bits: int) -> int | None:
    return own if own is None or own == KEEP else max(own, bits)


def _kinds(options: Mapping[str, Any]) -> list[str]:
    return [kind for kind in ("experts", "attention", "dense", "embeddings", "lm_head") if kind in options]
