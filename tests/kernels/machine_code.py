"""What a compiled kernel does in its main loop, read from its PTX: loads, asynchronous copies, barriers, products."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

UNITS = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}
_INSTRUCTION = re.compile(r"\s*(?:@!?%p\d+ )?([a-z][\w.:]*)")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global .*?\], (0x[0-9a-f]+|\d+)")


@dataclass(frozen=True)
class MainLoop:
    """The innermost loop around a kernel's products.

    Attributes:
        counts: instructions by name.
        copied_bytes: widths of the asynchronous copies, one an instruction.
    """

    counts: Counter[str]
    copied_bytes: tuple[int, ...]

    def number_of(self, start: str) -> int:
        """How many instructions begin so."""
        return sum(count for name, count in self.counts.items() if name.startswith(start))

    @property
    def waited_loads(self) -> int:
        """Loads from global memory into registers, for which the step that starts them waits."""
        return self.number_of("ld.global")

    @property
    def narrow_copies(self) -> int:
        """Asynchronous copies of less than 16 bytes."""
        return sum(width < 16 for width in self.copied_bytes)


def main_loop(ptx: str) -> MainLoop:
    """The loop with the fewest lines that has a product of a matrix unit. Raises ValueError where there is none."""
    around = [lines for lines in _loops(ptx.splitlines()) if any("mma" in line for line in lines)]
    if not around:
        raise ValueError("no loop has a product")
    lines = min(around, key=len)
    names = (found[1] for line in lines if (found := _INSTRUCTION.match(line)))
    widths = (int(found[1], 0) for line in lines if (found := _COPY.search(line)))
    return MainLoop(Counter(names), tuple(widths))


def _loops(lines: list[str]) -> list[list[str]]:
    """From each label to each later jump back to it."""
    labels: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines):
        if label := re.match(r"(\$L\w+):", line):
            labels[label[1]] = number
        jump = re.search(r"\bbra(?:\.uni)?\s+(\$L\w+);", line)
        if jump and jump[1] in labels:
            found.append(lines[labels[jump[1]] : number + 1])
    return found
