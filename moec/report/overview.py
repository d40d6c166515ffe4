"""What a page says first and last: the few figures that decide, how the engine is run, and how it is made again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec.program.decoder_signature import IDS, MASK, is_past
from moec.report.artefacts import size_bytes
from moec.report.clients import GENAI, KSERVE, RUNTIME, TRITON, client_code
from moec.report.report import Report
from moec.report.speed import Speed
from moec.shown import count_of, figure_of, size_of
from moec.targets.target import Target

# settings as a compile has them that nobody asked for anything; `moec.compiler.options` declares them
_DEFAULTS = {"optimize_for": "latency", "seed": 0, "verify": "full", "build": True, "cache": True}
_FLAGS = {"pipeline": "--pass", "inputs": "--input"}


@dataclass(frozen=True)
class Tile:
    """One figure that decides: what it is, the figure, and what it is to be seen beside."""

    name: str
    figure: str
    beside: str = ""
    ok: bool = True


def tiles(report: Report, speeds: Sequence[Speed]) -> list[Tile]:
    """Size, parameters, error or quality, experts, speed; what is not known is left out."""
    found = [_size(report), _parameters(report), _quality(report), _experts(report), *_speed(speeds)]
    return [tile for tile in found if tile is not None]


def sizes_drawn(report: Report) -> dict[str, float]:
    """Bytes of the model as it came and of the engine; empty where the first is not known."""
    before, after = report.size.stored_bytes if report.size else 0, _bytes(report)
    return {"the model as it came": float(before), "the engine": float(after)} if before and after else {}


def _bytes(report: Report) -> int:
    return size_bytes(report.artefacts)


def _size(report: Report) -> Tile | None:
    after, before = _bytes(report), report.size.stored_bytes if report.size else 0
    if not after:
        return None
    if not before:
        return Tile("Size", size_of(after))
    times = before / after
    said = f"{times:.1f} times smaller than" if times >= 1.05 else f"{after / before:.2f} times"
    return Tile("Size", size_of(after), f"{said} the model's {size_of(before)}")


def _parameters(report: Report) -> Tile | None:
    size = report.size
    if not size or not size.parameters_after:
        return None
    after, active, before = size.parameters_after, size.active_after, size.parameters
    share = "" if active is None else f"{count_of(active)} active a token ({active / after:.0%})"
    share = "all active" if active == after else share
    grown = f"{count_of(before)} before" if abs(before - after) > 0.01 * after else ""
    return Tile("Parameters", count_of(after), "; ".join(filter(None, [share, grown])))


def _quality(report: Report) -> Tile:
    text, own, found = report.quality, report.proof.own_quality, report.comparison
    if text:
        beside = f"nats of KL divergence a token on {Path(text.exam.text).name}, {text.perplexity_ratio:.4g} times the"
        return Tile("Quality", f"{text.kl_mean:.3g}", f"{beside} perplexity, top-1 {text.top1:.1%}", report.ok)
    if own:
        beside = f"nats of KL divergence a token, {figure_of(own.max_kl)} allowed; top-1 agreement {own.top1:.1%}"
        return Tile("Quality", f"{own.kl_mean:.3g}", beside, own.ok)
    worst = found.worst
    for name, figure, bound in found.bounds(worst)[:1]:  # the first says most to who reads one
        return Tile("Error", f"{figure:.2g}", f"{name}, {figure_of(bound)} allowed", found.ok)
    return Tile("Error", f"{worst.deviation:.2g}", "max |d| / std", found.ok)


def _experts(report: Report) -> Tile | None:
    found = report.coverage
    if not found.total:
        return None
    return Tile("Experts", f"{found.reached} of {found.total}", "reached by the proof", found.complete)


def _speed(speeds: Sequence[Speed]) -> list[Tile]:
    if not speeds:
        return []
    newest = speeds[0]
    if "decode" in newest.phases:
        first, later = newest.phases["prefill"], newest.phases["decode"]
        speed = f"{later.per_s:,.{0 if later.per_s >= 100 else 1}f}"
        return [Tile("Speed", speed, f"tokens/s; the first token after {first.p50_ms:,.3g} ms")]
    phase = next(iter(newest.phases.values()))
    return [Tile("Speed", f"{phase.p50_ms:,.3g} ms", f"a pass, {newest.what}")]


# ------------------------------------------------------------------ how to run it
def ways_to_run(report: Report) -> list[tuple[str, str]]:
    """What runs the engine, and the lines that do; in the engine's folder."""
    names = [name for name in report.account.get("inputs", ()) if not is_past(name)]
    decoder = any(map(is_past, report.account.get("inputs", ())))
    arguments = ", ".join(f"{name}={name}" for name in names) or "**inputs"
    shell = 'moec run . "Once upon a time"' if decoder else "moec run . --inputs inputs.npz -o outputs.npz"
    python = f'import moec\n\nengine = moec.load(".")\noutputs = engine({arguments})'
    return [("moec", shell), ("Python", python), *_others(report, decoder and {IDS, MASK} >= set(names))]


def _others(report: Report, decoder: bool) -> list[tuple[str, str]]:
    if report.layout in ("triton", "kserve"):
        clients = [TRITON, *[KSERVE] * (report.layout == "kserve")]
    elif Target.parse(report.target).backend != "onnxruntime":
        clients = []
    else:
        clients = [RUNTIME, *[GENAI] * (report.layout == "genai" and decoder)]
    return [(client, client_code(client, report, ".")) for client in clients]


# ------------------------------------------------------------------ how to make it again
def command(report: Report) -> str:
    """The command that compiles the engine, from its settings; those that everybody has are left out."""
    words = ["moec", "compile", report.source]
    for name, value in report.settings.items():
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        if value is None or value in ("", [], ()) or (name in _DEFAULTS and value == _DEFAULTS[name]):
            continue
        if isinstance(value, bool):
            words += [flag if value else f"--no-{flag[2:]}"]
        elif isinstance(value, list | tuple):
            words += [word for item in value for word in (flag, str(item))]
        else:
            words += [flag, _plain(value)]
    return " ".join([*map(shlex.quote, words), "-o", "again/"])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def ways_to_make(report: Report) -> list[tuple[str, str]]:
    """Commands that make the engine anew; of a model that was made in memory there is none."""
    if not report.source_hashes:
        return []
    again = "moec compile --from moec.json -o again/\nmoec diff . again/"
    return [
        ("The same settings, on the same files", again),
        ("In full", command(report)),
        ("The proof alone, on other inputs", "moec verify . --seed 2"),
    ]
