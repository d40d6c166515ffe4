"""What an engine did on the stand-in, read from its log and from ONNX Runtime's words on where nodes go."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

MATH_MODES = {0: "default", 1: "tensor cores", 2: "pedantic", 3: "TF32"}  # cublasMath_t
TYPES = {0: "fp32", 1: "fp64", 2: "fp16", 3: "int8", 14: "bf16"}  # cudaDataType_t
TF32 = 3
FAST_TF32 = 77  # CUBLAS_COMPUTE_32F_FAST_TF32
PLACED = re.compile(r"VerifyEachNodeIsAssignedToAnEp\] (.*)")
ALL_PLACED = re.compile(r"All nodes placed on \[(\w+)\]|Node\(s\) placed on \[(\w+)\]")


ATTENTION = re.compile(r"flash|kernel_mha|xqa|fmha|attention|softmax(?!topk)", re.IGNORECASE)


@dataclass(frozen=True)
class Kernel:
    """A kernel that was launched.

    Attributes:
        name: without arguments, demangled; with its template arguments.
        grid, block: in blocks, in threads.
        shared_bytes: dynamic shared memory a block.
        verdict: `ok`, or why the launch is refused, such as `empty-grid`.
    """

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    verdict: str

    @property
    def short(self) -> str:
        """Without namespaces and template arguments: `flash_fwd_kernel`."""
        return plain(self.name)


@dataclass(frozen=True)
class Product:
    """A product of matrices by cuBLAS: `m, n, k, batch`, dtype of the left matrix, compute type and math mode."""

    function: str
    dtype: str
    compute: int
    mode: int
    sizes: tuple[int, int, int, int]

    @property
    def tf32(self) -> bool:
        """Whether float32 is multiplied with 10 bits of mantissa (cuBLAS, `cublasMath_t`)."""
        return self.dtype == "fp32" and (self.mode == TF32 or self.compute == FAST_TF32)


@dataclass(frozen=True)
class Copy:
    """Bytes from one place to another: `device`, `pinned` or `host`; `waits`: the host waits for its end."""

    source: str
    target: str
    size_bytes: int
    waits: bool


@dataclass
class Part:
    """What happened between two marks: a load, a prompt, a step.

    Attributes:
        calls: names of BLAS functions that are no product; the host's functions and graphs that were launched.
        fills_bytes, allocations_bytes, pinned_bytes: sizes in order.
        waits: the host waits for a stream, an event or the device.
        faults: what real hardware would refuse, or what the stand-in does not know.
        held_bytes, most_bytes: device memory at its end, and the most of it within.
    """

    kernels: list[Kernel] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    fills_bytes: list[int] = field(default_factory=list)
    allocations_bytes: list[int] = field(default_factory=list)
    pinned_bytes: list[int] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    held_bytes: int = 0
    most_bytes: int = 0

    @property
    def launches(self) -> int:
        """What the host starts on the device, copies and fills left out: kernels, and one for each BLAS call."""
        return len(self.kernels) + len(self.products) + len(self.calls)

    @property
    def empty_grids(self) -> list[str]:
        """Kernels that were launched with nothing to do, which CUDA refuses."""
        return [k.short for k in self.kernels if k.verdict == "empty-grid"]

    @property
    def refused(self) -> list[str]:
        """Every launch that real hardware refuses, and why."""
        return [f"{k.short}: {k.verdict}" for k in self.kernels if k.verdict != "ok"]

    def copied(self, source: str, target: str) -> list[int]:
        """Sizes in bytes of the copies between two places; `host` includes pinned memory."""
        ends = {"host": ("host", "pinned"), "device": ("device",)}
        return [c.size_bytes for c in self.copies if c.source in ends[source] and c.target in ends[target]]

    @property
    def attention(self) -> Counter[str]:
        """Kernels of attention: `flash_fwd_kernel`, XQA's `kernel_mha`. One of `softmax` is attention in parts."""
        return Counter(k.short for k in self.kernels if ATTENTION.search(k.short))

    @property
    def tf32(self) -> list[Product]:
        """Products of float32 that are computed in TF32."""
        return [p for p in self.products if p.tf32]

    def names(self) -> Counter[str]:
        """How often each kernel and each BLAS function was launched, by its short name."""
        return Counter([k.short for k in self.kernels] + [p.function for p in self.products] + self.calls)


@dataclass
class Observation:
    """One engine on the stand-in.

    Attributes:
        nodes: provider -> operator -> number of nodes, in branches too. `Memcpy` nodes are the provider's own.
        parts: `load`, `first`, `prompt`, `step 0`...
        warnings: what ONNX Runtime warns of while it opens the engine.
        error: why it failed; empty when it did not.
    """

    nodes: dict[str, Counter[str]]
    parts: dict[str, Part]
    warnings: list[str]
    error: str = ""

    @property
    def refused(self) -> list[str]:
        """Everything that real hardware would refuse, or the stand-in does not know, in any part."""
        return list(dict.fromkeys(text for part in self.parts.values() for text in [*part.refused, *part.faults]))

    @property
    def on_cpu(self) -> Counter[str]:
        """Operators that the CPU runs."""
        return self.nodes.get("CPUExecutionProvider", Counter())

    @property
    def on_cuda(self) -> Counter[str]:
        """Operators that the CUDA provider runs, copies between the two left out."""
        nodes = self.nodes.get("CUDAExecutionProvider", Counter())
        return Counter({op: n for op, n in nodes.items() if not op.startswith("Memcpy")})

    @property
    def memcpy_nodes(self) -> int:
        """Nodes that copy between the CPU and the device."""
        return sum(n for nodes in self.nodes.values() for op, n in nodes.items() if op.startswith("Memcpy"))

    @property
    def step(self) -> Part:
        """The last step, in which nothing is done for the first time."""
        return self.parts[[name for name in self.parts if name.startswith("step")][-1]]

    @property
    def prompt(self) -> Part:
        """The second prompt, or the second call of what keeps no cache."""
        return self.parts["prompt"]


def plain(name: str) -> str:
    """`void a::b<c::d>(e)` -> `b`."""
    bare = name
    while (fewer := re.sub(r"<[^<>]*>|\([^()]*\)", "", bare)) != bare:
        bare = fewer
    return (bare.split("::")[-1].split() or [name])[-1]


@cache
def demangled(symbol: str) -> str:
    """The name that a C++ compiler has made a symbol of."""
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    found = library.__cxa_demangle(symbol.encode(), None, None, ctypes.byref(status))
    if not found:  # templates of the newest C++ are more than an older library can read
        return _outer(symbol)
    name = ctypes.string_at(found).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(found))
    return name


def _outer(symbol: str) -> str:
    """`_ZN1a1bI...` -> `a::b`: the names up to the first template argument."""
    names, rest = [], symbol.removeprefix("_ZN").removeprefix("_Z")
    while length := re.match(r"\d+", rest):
        end = length.end() + int(length[0])
        names.append(rest[length.end() : end])
        rest = rest[end:]
    return "::".join(names) or symbol


def read_log(text: str) -> list[tuple[dict[str, Part], str]]:
    """The parts of each job, and its error."""
    jobs: list[tuple[dict[str, Part], str]] = []
    part = Part()
    for line in text.splitlines():
        event, _, rest = line.partition(" ")
        if event != "mark":
            _read(event, rest, part)
            continue
        held, most, name = rest.split(" ", 2)
        part.held_bytes, part.most_bytes = int(held), int(most)
        part = Part()
        if name.startswith("job "):
            jobs.append(({"load": part}, "the process ended before its time"))
        elif name == "end" or name.startswith("error "):
            jobs[-1] = jobs[-1][0], name.partition(" ")[2]
        else:
            jobs[-1][0][name] = part
    return jobs


def _read(event: str, rest: str, part: Part) -> None:
    words = rest.split()
    match event:
        case "launch":
            part.kernels.append(_kernel(rest.split(" ", 4)))
        case "product":
            function, _, dtype, _, compute, _, mode, sizes = words
            m, n, k, batch = (int(size) for size in sizes.split(","))
            name = TYPES.get(int(dtype), f"type {dtype}")
            part.products.append(Product(function, name, int(compute), int(mode), (m, n, k, batch)))
        case "copy":
            part.copies.append(Copy(words[1], words[2], int(words[3]), words[0] == "waits"))
        case "fill":
            part.fills_bytes.append(int(rest))
        case "alloc":
            part.allocations_bytes.append(int(words[1]))
        case "pin":
            part.pinned_bytes.append(int(rest))
        case "wait":
            part.waits.append(rest)
        case "graph":
            part.graphs.append(int(rest))
        case "fault":
            part.faults.append(rest)
        case "call":
            part.calls.append(rest)
        case "free" | "hostcall" | "capture":
            pass
        case _:
            raise ValueError(f"the log has an unknown event {event!r}")


def _kernel(words: list[str]) -> Kernel:
    verdict, grid, block, shared, symbol = words
    sizes = [tuple(int(n) for n in size.split(",")) for size in (grid, block)]
    return Kernel(demangled(symbol), sizes[0], sizes[1], int(shared), verdict)  # type: ignore[arg-type]


def read_places(text: str) -> dict[str, Counter[str]]:
    """Provider -> operators, from what ONNX Runtime says in its most talkative setting."""
    nodes: dict[str, Counter[str]] = {}
    provider = ""
    for line in _placed(text):
        if found := ALL_PLACED.search(line):
            provider = found[1] or found[2]
        elif provider and (node := re.match(r" *(\w+) \(", line)):
            nodes.setdefault(provider, Counter())[node[1]] += 1
    return nodes


def _placed(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if found := PLACED.search(line):
            yield found[1]
