"""Compiling kernels ahead of time, for any GPU and without one: what an engine can embed, and what the tests bound."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.kernels.starting import Launch

# bytes of shared memory that one program may have (CUDA programming guide, technical specifications)
SHARED_LIMIT_BYTES = {
    80: 166_912,
    86: 101_376,
    87: 166_912,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    120: 101_376,
    121: 101_376,
}
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Compiled:
    """A kernel as machine code.

    Attributes:
        name: the entry's name in the PTX. ptx: its text.
        registers: a thread's. spilled_bytes: a thread's stack, 0 when everything is in registers.
        shared_bytes: a program's shared memory.
        scratch_bytes: global memory that Triton's launcher would have to bring; an engine that launches the PTX by
            itself can't.
        warps: of 32 threads in a program.
    """

    name: str
    ptx: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    scratch_bytes: int
    warps: int


def compile_ahead(launch: Launch, sm: int, fixed: bool = False, isa: int = 0) -> Compiled:
    """Compile what `moec.kernels.starting.recording` wrote down, for compute capability `sm`. Needs Triton and its
    ptxas, no GPU.

    Args:
        launch: the start of a kernel; tensors that are None are no parameters of what is compiled.
        sm: compute capability, 90 for 9.0.
        fixed: compile numbers in as they are, but for those that the kernel declares as changing (`do_not_specialize`).
        isa: version of the PTX, 80 for 8.0, so that older drivers read it; 0 for the newest that Triton's ptxas knows.

    Raises:
        triton.runtime.errors.PTXASError: where the kernel needs a newer `isa`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = _specialize(launch, fixed)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {
        "enable_fp_fusion": True,
        **launch.options,
        **({"ptx_version": isa} if isa else {}),
    }  # said, since Triton's default changes
    built = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    registers, stack = _usage(built.asm["cubin"])
    scratch = built.metadata.global_scratch_size + (getattr(built.metadata, "profile_scratch_size", 0) or 0)
    return Compiled(
        built.metadata.name,
        built.asm["ptx"],
        registers,
        stack,
        built.metadata.shared,
        scratch,
        built.metadata.num_warps,
    )


def _specialize(
    launch: Launch, fixed: bool
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and attributes as Triton's own launcher would find them: sixteens are known, and ones are
    constants."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for n, (parameter, value) in enumerate(zip(launch.kernel.params, launch.arguments.values(), strict=True)):
        general = parameter.do_not_specialize
        known = value is None or (isinstance(value, int) and (fixed or value == 1) and not general)
        if parameter.is_constexpr or known:
            signature[parameter.name], constants[(n,)] = "constexpr", value
            continue
        signature[parameter.name] = (
            f"*{_TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32" if isinstance(value, int) else "fp32"
        )
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and not general):
            attributes[(n,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread, as the disassembler that comes with Triton reads them."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text!r}")
    return int(found[1]), int(found[2])
