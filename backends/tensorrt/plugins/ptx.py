"""A kernel's PTX as a plugin of TensorRT needs it.

Triton ends each entry with two pointers to scratch memory, which its own launcher fills and which kernels without
scratch never read. TensorRT passes a plugin's inputs, numbers and outputs and nothing else, so these parameters have to
go. So do line numbers: they name folders of the machine that compiled, and would make equal kernels differ.
"""

from __future__ import annotations

import re

from moec.errors import MoecError


def parameters(ptx: str, entry: str) -> list[str]:
    """Types of an entry's parameters in order, e.g. `["u64", "u32"]`.

    Raises:
        MoecError: M208 when there is no such entry.
    """
    start, end = _list_of(ptx, entry)
    return re.findall(r"\.param \.(\w+)", ptx[start:end])


def for_plugin(ptx: str, entry: str, count: int) -> str:
    """The same PTX whose entry has its first `count` parameters only, without line numbers.

    Raises:
        MoecError: M208 when it has fewer, or reads one of those that would go.
    """
    found = parameters(ptx, entry)
    if len(found) < count:
        raise _wrong(entry, f"has {len(found)} parameters, and its plugin passes {count}")
    start, end = _list_of(ptx, entry)
    read = [n for n in range(count, len(found)) if re.search(rf"\b{entry}_param_{n}\b", ptx[end:])]
    if read:
        raise _wrong(entry, f"reads its parameter {read[0]}, which is not the plugin's")
    first = ",".join(ptx[start:end].split(",")[:count])
    return _without_lines(f"{ptx[:start]}{first.rstrip()}\n{ptx[end:]}")


def _without_lines(ptx: str) -> str:
    without_sections = re.sub(r"^\s*\.section\s+\.debug_\w+\s*\{.*?\}\s*?\n", "", ptx, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^\s*\.(loc|file)\s.*\n", "", without_sections, flags=re.MULTILINE)


def _list_of(ptx: str, entry: str) -> tuple[int, int]:
    """Where the list of parameters stands between its brackets."""
    found = re.search(rf"\.entry\s+{re.escape(entry)}\(", ptx)
    if found is None:
        raise _wrong(entry, "is not in its PTX")
    return found.end(), ptx.index(")", found.end())


def _wrong(entry: str, what: str) -> MoecError:
    return MoecError("M208", f"the kernel {entry} {what}", entry, "take lowering=dense or gathered, and report this")
