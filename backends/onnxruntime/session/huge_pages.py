"""A session's weights on huge pages: a decoder reads all of them for every token, and with pages of 4 KiB it also reads
their page tables.

Linux gives memory huge pages where they are asked for before it is first written (`transparent_hugepage/enabled` is
`madvise` on most machines), and the runtime does not ask. What is written already can be collapsed, since Linux 6.1:
the pages are copied, addresses and contents stay. It takes 2 to 3 s a GiB, so a thread does it beside whatever runs, at
the lowest priority. Measured with two decoders of 0.3 GB: a token in 0.95 to 0.97 of the time. Memory that malloc had
kept from before the session is not told apart, and left as it is.

Other clients have the same, and load faster, with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

HUGE = (
    2 << 20
)  # bytes of a huge page on x86-64, and on ARM with pages of 4 KiB; elsewhere the kernel refuses and nothing happens
PIECE = 16 * HUGE  # of one call: the kernel gives up the rest of a call where it finds no huge page free
MADV_COLLAPSE = 25  # linux/mman.h; Python 3.11's mmap has no name for it
ENABLED, MAPS = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/maps")


def anonymous_memory() -> list[range]:
    """The process's writable memory that no file is behind, as ranges of addresses; empty where this system has no huge
    pages or none are wanted."""
    try:
        if sys.platform != "linux" or "[never]" in ENABLED.read_text():
            return []
        lines = MAPS.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(maxsplit=5) for line in lines]
    bounds = [
        where.split("-")
        for where, rights, _, _, inode, *name in fields
        if "w" in rights and inode == "0" and name in ([], ["[heap]"])
    ]
    return [range(int(start, 16), int(end, 16)) for start, end in bounds]


def without(memory: Iterable[range], taken: Iterable[range]) -> list[range]:
    """The parts of `memory` that are in none of `taken`."""
    holes = set(taken)
    parts = [p for p in memory if p not in holes]  # nearly all are
    for hole in holes:
        cut = [
            range(a, b)
            for p in parts
            for a, b in ((p.start, min(p.stop, hole.start)), (max(p.start, hole.stop), p.stop))
        ]
        parts = [p for p in cut if len(p) > 0]
    return parts


def collapse(memory: Iterable[range]) -> None:
    """Put what is written of these addresses on huge pages. What the kernel refuses stays as it is."""
    madvise = ctypes.CDLL(None).madvise  # a foreign call: other Python threads run on
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for part in memory:
        start, stop = -(-part.start // HUGE) * HUGE, part.stop // HUGE * HUGE
        for piece in range(start, stop, PIECE):
            madvise(piece, min(PIECE, stop - piece), MADV_COLLAPSE)


def collapse_beside(memory: list[range]) -> threading.Thread:
    """`collapse` in a thread that runs when nothing else wants to. Memory that is given back meanwhile is no problem:
    the kernel says so."""

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # on Linux of this thread alone
        collapse(memory)

    thread = threading.Thread(target=run, name="moec huge pages", daemon=True)
    thread.start()
    return thread
