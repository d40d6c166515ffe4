"""Plots of what `benchmarks/` measured: `make pictures` draws `benchmarks/results/*.json` into `docs/pictures/*.svg`.

Each picture holds the figures that it shows, so that a test can see when the results are newer than the picture.

usage: python docs/scripts/pictures.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
RESULTS = DOCS.parent / "benchmarks" / "results"
Figures = dict[str, Any]
OURS, THEIRS, LIMIT = "#00897b", ("#8d6e63", "#5c6bc0", "#ef6c00", "#ab47bc", "#78909c", "#c0a000"), "#9e9e9e"


def _read(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


# ---------------------------------------------------------------------- figures
def experts_block() -> Figures:
    """Contestant -> block -> tokens a call -> time as a multiple of moec's better form."""
    found: Figures = {}
    for row in _read("moe_cpu")["rows"]:
        if row["unit"].startswith("x moec") and not row["who"].startswith("moec"):
            block, tokens = re.fullmatch(r"(\w) T=(\d+)", row["case"]).groups()  # type: ignore[union-attr]
            found.setdefault(row["who"], {}).setdefault(block, {})[tokens] = row["value"]
    return found


def decoder() -> Figures:
    """Model and stage -> contestant -> tokens a second."""
    return _by_case("decoder_cpu", "tokens/s")


def quantized_decoder() -> Figures:
    """Model -> contestant -> milliseconds a token."""
    return _by_case("quantized_decoder_cpu", "ms")


def _by_case(name: str, unit: str) -> Figures:
    found: Figures = {}
    for row in _read(name)["rows"]:
        if row["unit"] == unit:
            found.setdefault(row["case"], {})[row["who"]] = row["value"]
    return found


def proof() -> Figures:
    """Kind of engine -> who judged -> share that was refused, in percent."""
    report = _read("proof")
    rows = report["rows"]
    judged = {(row["case"], row["who"]): row["value"] for row in rows}
    wrong = [row["case"] for row in rows if row["who"] == "how wrong" and not row["unit"].startswith("NOT")]
    right = list(dict.fromkeys(row["case"] for row in rows if row["case"].startswith("right: ")))
    people = list(dict.fromkeys(row["who"] for row in rows if row["case"] == right[0] and type(row["value"]) is bool))
    kinds = {"wrong engines that were refused": wrong, "right engines that were refused": right}
    return {
        kind: {who: _share([judged.get((case, who)) for case in cases]) for who in people}
        for kind, cases in kinds.items()
    }


def _share(said: list[Any]) -> float:
    known = [value for value in said if value is not None]
    return round(100 * sum(map(bool, known)) / len(known), 1)


def quality() -> Figures:
    """Recipe -> [times fewer bytes than in 16 bits, KL divergence in nats a token]."""
    report, found = _read("quality"), dict[str, dict[str, float]]()
    for row in report["rows"]:
        found.setdefault(row["case"], {})[row["who"]] = row["value"]
    return {
        case: [round(report["bytes"] / values["bytes"], 3), values["kl"]]
        for case, values in found.items()
        if {"bytes", "kl"} <= set(values) and not case.startswith("experts alone")
    }


# ---------------------------------------------------------------------- plots
def _lines(figures: Figures, axes: Any) -> None:
    for axis, (block, title) in zip(
        axes, {"A": "8 experts of 2048, top-2", "B": "64 experts of 512, top-8"}.items(), strict=True
    ):
        for who, colour in zip(figures, (LIMIT, *THEIRS), strict=False):
            tokens, times = zip(*figures[who][block].items(), strict=True)
            style = ":" if who == "read" else "-"
            axis.plot([int(t) for t in tokens], times, style, marker="o", ms=4, color=colour, label=_named(who))
        axis.axhline(1, color=OURS, lw=2.5, label="moec")
        axis.set(xscale="log", yscale="log", xlabel="tokens a call", title=title, ylim=(0.03, 5))
        axis.set_xticks([1, 16, 128, 1024], ["1", "16", "128", "1024"])
        axis.set_yticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
    axes[0].set_ylabel("time, as a multiple of moec's")
    axes[1].legend(fontsize=7, loc="lower left")


def _named(who: str) -> str:
    return "reading the weights once" if who == "read" else who


def _bars(figures: Figures, axes: Any, label: str) -> None:
    for axis, (case, values) in zip(axes, figures.items(), strict=True):
        people = list(values)[::-1]
        colours = [OURS if who.startswith("moec") else LIMIT if who.startswith("read") else THEIRS[1] for who in people]
        values = {who: values[who] for who in people}
        bars = axis.barh([_named_bytes(who) for who in people], list(values.values()), color=colours)
        axis.bar_label(
            bars, [f"{value:,.{0 if value > 99 else 1}f}" for value in values.values()], padding=3, fontsize=8
        )
        axis.set(title=case, xlabel=label)
        axis.margins(x=0.18)


def _named_bytes(who: str) -> str:
    return {"read": "reading the float32 weights", "read 4": "reading the 4-bit weights"}.get(who, who)


def _points(figures: Figures, axes: Any) -> None:
    (axis,) = axes
    kinds = {"RTN": "rounded", "GPTQ": "GPTQ", "bits of": "mixed widths", "of the experts": "experts dropped"}
    for (mark, label), colour in zip(kinds.items(), (THEIRS[1], OURS, THEIRS[2], THEIRS[3]), strict=True):
        found = {case: point for case, point in figures.items() if mark in case}
        axis.plot(*zip(*found.values(), strict=True), "o", color=colour, label=label)
    for text, place in {"8 bits": (2.0, 3.7e-4), "3 and 4 bits": (3.78, 2.3e-3), "2 bits": (6.5, 8e-3)}.items():
        axis.annotate(text, place, fontsize=8)
    axis.set(yscale="log", xlabel="times fewer bytes than in 16 bits", ylabel="KL divergence, nats a token")
    axis.set_yticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    axis.legend(fontsize=8)


PICTURES: dict[str, tuple[Callable[[], Figures], int, Callable[[Figures, Any], None]]] = {
    "experts-block": (experts_block, 2, _lines),
    "decoder": (decoder, 4, lambda figures, axes: _bars(figures, axes, "tokens/s, more is better")),
    "quantized-decoder": (
        quantized_decoder, 2, lambda figures, axes: _bars(figures, axes, "ms a token, less is better"),
    ),
    "proof": (proof, 2, lambda figures, axes: _bars(figures, axes, "% of them")),
    "quality": (quality, 1, _points),
}  # fmt: skip


def recorded(picture: Path) -> Figures:
    """The figures that a picture says it shows."""
    said = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text(), re.DOTALL)
    assert said is not None, picture
    return dict(json.loads(unescape(said[1])))


def draw(name: str, path: Path) -> None:
    """Draw one picture."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figures_of, columns, plot = PICTURES[name]
    figures = figures_of()
    with pyplot.rc_context({"svg.hashsalt": "moec", "svg.fonttype": "none", "font.family": "sans-serif"}):
        rows = 2 if columns == 4 else 1
        figure, axes = pyplot.subplots(
            rows, columns // rows, figsize=(10 if columns > 1 else 7, 3.8 * rows), layout="constrained", squeeze=False
        )
        for axis in axes.flat:
            axis.spines[["top", "right"]].set_visible(False)
        plot(figures, axes.flat if columns > 1 else [axes[0, 0]])
        figure.savefig(path, metadata={"Date": None, "Title": name, "Description": json.dumps(figures)})
        pyplot.close(figure)


if __name__ == "__main__":
    for each in PICTURES:
        draw(each, DOCS / "pictures" / f"{each}.svg")
        print(DOCS / "pictures" / f"{each}.svg")
