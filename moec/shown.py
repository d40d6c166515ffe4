"""What people see: figures in units that fit, and texts of others with what steers a terminal or turns the direction of
writing spelled out."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

# C0 without tab and line feed, DEL and C1; marks and overrides of direction; separators of lines; halves of surrogates;
# tags. The joiners U+200C and U+200D stay, since scripts and emoji need them.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def shown(text: str) -> str:
    r"""A text in which every steering character is written as Python writes it, e.g. `\x1b`; lines and tabs stay."""
    return _STEERING.sub(_spelled, text)


def one_line(text: str) -> str:
    """The same in one line: a name that holds line feeds cannot pose as lines of ours."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def figure_of(bound: float) -> str:
    """A bound as people write it: `0.001`, `0.5`, `1,000,000`, not `1e+06`."""
    return f"{bound:g}" if abs(bound) < 1e5 else f"{bound:,.0f}" if abs(bound) < 1e15 else f"{bound:.3g}"


def size_of(count: float) -> str:
    """Bytes in the unit that fits, with three digits at least: `0 B`, `31.2 KiB`, `1.50 GiB`."""
    return _in_units(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def count_of(number: float, unit: str = "") -> str:
    """A number in thousands, millions or billions, as models are named by: `512`, `1.50 K`, `7.62 M`, `1.76 B`; with a
    unit of its own, such as `FLOP`, `G` stands for `B`."""
    thousands = ("", "K", "M", "G" if unit else "B", "T")
    return _in_units(number, 1000, tuple(f"{prefix}{unit}" for prefix in thousands))


def span_of(low: float, high: float, form: str = "") -> str:
    """An interval in a few letters, each end in a form, or with three digits where it has them: `0.28–0.63`,
    `1,036–2,120`; one end where both are written alike."""
    ends = [format(n, form or (",.0f" if n >= 100 else ".1f" if n >= 10 else ".2f")) for n in sorted((low, high))]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def time_of(seconds: float) -> str:
    """A time as people say an estimate: `10 seconds`, `4 minutes`, `12 hours`, with two of a unit at least."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} {'second' if round(seconds) == 1 else 'seconds'}"


def _in_units(number: float, base: int, units: tuple[str, ...]) -> str:
    step = 0
    while step < len(units) - 1 and number >= base * 0.9995:  # what would be rounded up to `base`
        number, step = number / base, step + 1
    digits = 0 if not step or number >= 100 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f} {units[step]}".rstrip()


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """The rows of a table as lines, each column as wide as its widest cell; those in `right` end at one place."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(f"{c:>{w}}" if k in right else f"{c:<{w}}" for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        .rstrip()
        for row in rows
    ]  # fmt: skip
