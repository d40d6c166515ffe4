"""`moec routers`: what a mixture's routers do with a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moec.cli import completing
from moec.cli.console import common, emit, progress, say, say_text
from moec.cli.settings import model_options
from moec.cli.terminal import TERMINAL
from moec.errors import MoecError

if TYPE_CHECKING:
    from moec.compiler.routers import RouterReport
    from moec.routing.figures import RouterFigures

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
_COLUMNS = (
    "layer", "experts", "max load", "MaxVio", "in effect", "dead", "starved", "entropy", "confidence", "margin",
    "alike",
)  # fmt: skip


@click.command("routers")
@click.argument("model", shell_complete=completing.files)
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    metavar="[NAME=]FILE",
    shell_complete=completing.named_files,
    help="A text (UTF-8, or token ids in .npy, .npz, .safetensors), with the name of its domain. Repeatable.",
)
@click.option(
    "--versus",
    shell_complete=completing.files,
    help="Another checkpoint: how far its routers choose otherwise for the same tokens.",
)
@click.option("--tokens", type=int, default=16384, help="Of each text at most, 0 for all.  [default: 16384]")
@click.option("--window", type=int, help="Tokens that the model sees at a time.  [default: 256]")
@model_options
@common
def routers_command(
    model: str,
    texts: tuple[str, ...],
    versus: str | None,
    tokens: int,
    window: int | None,
    as_json: bool,
    quiet: bool,
    **opening: Any,
) -> None:
    """Say how MODEL's routers divide the tokens of a text: load, dead experts, entropy, what a cache of hot experts
    would bring; with several texts, how far experts know domains. It reports and warns; exit status 0 is no verdict.
    """
    from moec.compiler.routers import routers

    given = {"versus": versus, "tokens": tokens, "window": window, **opening}
    found = routers(model, named_texts(texts), progress=progress(quiet), **given)
    if as_json:
        emit(found.to_dict())
        return
    for line in view(found):
        say_text(line) if "\n" in line else say(line)


def named_texts(texts: tuple[str, ...]) -> dict[str, str]:
    """`law=FILE` or `FILE`, as files by name. Raises M201 for two of one name."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or Path(text).exists():
            name, file = Path(text).stem, text
        if not name or not file or name in found:
            what = f"two texts are called {name!r}" if name in found else f"{text!r} names no text"
            raise MoecError("M201", what, "--text", "write --text law=law.txt --text code=code.txt")
        found[name] = file
    return found


def view(found: RouterReport) -> list[str]:
    """Tables of a report, and its warnings."""
    seen = ", ".join(f"{text.name} ({text.tokens:,} tokens)" for text in found.texts)
    lines = [f"{found.model} on {seen}, windows of {found.window}", ""]
    lines.append(TERMINAL.table(_COLUMNS, [_row(f) for f in found.layers], right=range(1, len(_COLUMNS))))
    for head, rows in (_together(found), _cached(found), _special(found), _drifted(found)):
        if rows:
            lines += ["", TERMINAL.table(head, rows, right=range(1, len(head)))]
    lines += ["", *(f"warning: {a.layer}: {a.what}" for a in found.alarms)]
    return lines if found.alarms else [*lines, "no warnings"]


def _row(f: RouterFigures) -> tuple[str, ...]:
    alike = f"{f.similarity.mean:.3f}" if f.similarity else ""
    scored = (f"{v:.3f}" if v is not None else "" for v in (f.entropy, f.confidence, f.margin))
    counts = (str(len(f.dead)), str(len(f.starved)))
    sizes = (f"{f.top_k} of {f.experts}", f"{max(f.load):.1%}", f"{f.max_vio:.2f}", f"{f.effective_experts:.1f}")
    return (f.layer, *sizes, *counts, *scored, alike)


def _together(found: RouterReport) -> Table:
    """The pair that is chosen together most in each layer, and the pair of experts that are most alike."""
    rows: list[tuple[str, ...]] = []
    for f in found.layers:
        pair = f.pairs[0] if f.pairs else None
        chosen = (
            (f"{pair.experts[0]}+{pair.experts[1]}", f"{pair.share:.1%}", f"{pair.lift:.2f}") if pair else ("",) * 3
        )
        near = f.similarity
        alike = (f"{near.pair[0]}+{near.pair[1]}", f"{near.most:.3f}") if near else ("", "")
        rows.append((f.layer, *chosen, *alike))
    return ("layer", "chosen together", "of tokens", "× chance", "most alike", "cosine"), rows


def _cached(found: RouterReport) -> Table:
    """Hit rates of caches, for layers with the same sizes."""
    sizes = sorted({(r.cached, f.experts) for f in found.layers for r in f.reuse})
    rows = []
    for f in found.layers:
        rates = {(r.cached, f.experts): r for r in f.reuse}
        cells = ((rates[s].hit_rate, rates[s].uniform) if s in rates else (None, 0.0) for s in sizes)
        rows.append((f.layer, *(f"{hit:.1%} ({even:.0%})" if hit is not None else "" for hit, even in cells)))
    head = ("cache hits (uniform)", *(f"{n} of {experts}" for n, experts in sizes))
    return head, rows if sizes else []


def _special(found: RouterReport) -> Table:
    head = ("specialisation", "bits", "by chance", "what is left", "most")
    figures = [(f.layer, s) for f in found.layers if (s := f.specialisation)]
    return head, [
        (layer, *(f"{v:.4f}" for v in (s.bits, s.chance_bits, s.corrected_bits, s.most_bits))) for layer, s in figures
    ]


def _drifted(found: RouterReport) -> Table:
    head = (f"beside {found.versus}", "choices kept", "tokens kept", "load moved")
    return head, [(d.layer, f"{d.agreement:.1%}", f"{d.same:.1%}", f"{d.total_variation:.1%}") for d in found.drift]
