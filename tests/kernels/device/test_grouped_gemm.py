"""The kernels as machine code of every GPU generation: they compile, stay in registers and fit into shared memory.

What they compute is in `tests/kernels/test_launch.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from moec.dialect import Activation, Routing
from moec.kernels import launch
from moec.kernels.ahead import SHARED_LIMIT_BYTES, Compiled, compile_ahead
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import recording
from moec.kernels.tiles import Tile
from tests.kernels.conftest import Interpret
from tests.kernels.machine_code import UNITS, main_loop

SMS = [80, 89, 90, 100, 120]
# tokens, experts, top-k, hidden, inner: Mixtral-8x7B, Qwen3-30B-A3B and gpt-oss-120b
SHAPES = {
    "mixtral": (4096, 8, 2, 4096, 14336),
    "qwen3": (1, 128, 8, 2048, 768),
    "gpt-oss": (4096, 128, 4, 2880, 2880),
    "gpt-oss, one token": (1, 128, 4, 2880, 2880),
}
CLAMPED = Activation("silu", alpha=1.702, beta=1.0, limit=7.0)
CASES = {
    "one token": ("qwen3", "bf16", Activation()),
    "many tokens": ("mixtral", "bf16", Activation()),
    "clamped, with biases, transposed": ("gpt-oss", "transposed", CLAMPED),
    "one token, transposed": ("gpt-oss, one token", "transposed", CLAMPED),
    "one token, int4": ("qwen3", "int4", Activation()),
    "many tokens, int4": ("mixtral", "int4", Activation()),
    "clamped, with biases, int4": ("gpt-oss", "int4", CLAMPED),
    "many tokens, fp8": ("mixtral", "fp8", Activation()),
    "many tokens, float32": ("gpt-oss", "fp32", Activation("relu2", gated=False)),
}


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def weights(kind: str, *shape: int) -> torch.Tensor | ExpertCodes:
    experts, rows, depth = shape
    if kind == "int4":
        group = 128 if depth % 128 == 0 else 64
        return ExpertCodes(empty(experts, rows, depth // 2, dtype=torch.uint8), empty(experts, rows, depth // group))
    if kind == "transposed":  # as transformers keeps gpt-oss's
        return empty(experts, depth, rows).mT
    if kind == "fp8":
        return ExpertCodes(
            empty(*shape, dtype=torch.float8_e4m3fn),
            empty(experts, -(-rows // 128), -(-depth // 128), dtype=torch.float32),
            group=128,
            rows=128,
        )
    return empty(*shape, dtype=torch.float32 if kind == "fp32" else torch.bfloat16)


def built(
    case: str, sm: int, change: dict[str, Any] | None = None, only: str = "", resident: int | None = None
) -> list[Compiled]:
    """Every kernel of one case, or those with `only` in their names; runs where `compiler` says."""
    shape, kind, rule = CASES[case]
    tokens, experts, top_k, hidden, inner = SHAPES[shape]
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    biases = (
        (empty(experts, rule.rows_per_neuron * inner), empty(experts, hidden)) if "gpt-oss" in shape else (None, None)
    )
    with recording(sm) as found:
        matrices = weights(kind, experts, rule.rows_per_neuron * inner, hidden), weights(kind, experts, hidden, inner)
        x, router = empty(tokens, hidden, dtype=dtype), empty(experts, hidden)
        launch.moe(
            x,
            router,
            empty(experts),
            empty(experts),
            *matrices,
            *biases,
            routing=Routing(top_k),
            rule=rule,
            resident=resident,
        )
    suffix = "_persistent" if resident else ""
    wanted = [
        "logits",
        "route",
        *(["count", "align"] if tokens > 16 else []),
        f"rows_in{suffix}",
        f"rows_out{suffix}",
        "combine",
    ]
    assert [x.kernel.__name__ for x in found.launches] == [f"{name}_kernel" for name in wanted]
    launches = [replace(x, options={**x.options, **(change or {})}) for x in found.launches]
    wanted = only or (
        "" if case in ("one token", "many tokens") else "rows"
    )  # the small ones don't depend on the weights
    return [compile_ahead(x, sm) for x in launches if wanted in x.kernel.__name__]


# what differs from another case in the table's line, the matrix unit or the way into registers; the rest repeats it
OFTEN = {
    *(("many tokens", sm) for sm in SMS),
    *(("one token", sm) for sm in (80, 90)),
    *(("clamped, with biases, transposed", sm) for sm in (80, 90)),
    ("one token, transposed", 90),
    *(("many tokens, int4", sm) for sm in (80, 90, 100)),
    *(("one token, int4", sm) for sm in (80, 90)),
    ("clamped, with biases, int4", 100),
    *(("many tokens, fp8", sm) for sm in (80, 90)),
    ("many tokens, float32", 90),
}
EVERY = [
    pytest.param(case, sm, marks=[] if (case, sm) in OFTEN else [pytest.mark.repeats]) for case in CASES for sm in SMS
]


@pytest.mark.parametrize(("case", "sm"), EVERY)
def test_every_gpu(compiler: Interpret, case: str, sm: int) -> None:
    for kernel in compiler(built, case, sm):
        assert f".target sm_{sm}" in kernel.ptx and f".visible .entry {kernel.name}(" in kernel.ptx
        assert kernel.scratch_bytes == 0, kernel.name
        assert kernel.spilled_bytes == 0 and kernel.registers <= 255, kernel.name
        assert kernel.registers * 32 * kernel.warps <= 65536, kernel.name
        assert kernel.shared_bytes <= SHARED_LIMIT_BYTES[sm], kernel.name
        # what is left of a kernel that needs more tensor memory than there is
        assert "\ttrap;" not in kernel.ptx, kernel.name
        if "rows" in kernel.name and "float32" not in case:
            demand_a_good_main_loop(kernel, case, sm)


def demand_a_good_main_loop(kernel: Compiled, case: str, sm: int) -> None:
    """Nothing is loaded that the same step waits for, all comes by asynchronous copies of 16 bytes, and the GPU's best
    matrix unit multiplies where a tile has rows enough for it."""
    loop = main_loop(kernel.ptx)
    assert loop.waited_loads == 0, kernel.name
    assert loop.narrow_copies == (1 if "int4" in case or "fp8" in case else 0), kernel.name  # scales, 4 bytes a row
    assert len(loop.copied_bytes) - loop.narrow_copies >= 4, kernel.name
    unit = UNITS.get(sm, UNITS[80]) if "one token" not in case else UNITS[80]
    assert loop.number_of(unit) >= 4, kernel.name
    assert loop.number_of("bar.") <= 3, kernel.name


def test_a_bad_main_loop_is_seen(compiler: Interpret) -> None:
    """Transposed weights that are read as if they were straight: one load a weight."""
    started = compiler(misread, 90)
    with pytest.raises(AssertionError):
        demand_a_good_main_loop(started, "many tokens", 90)
    assert main_loop(started.ptx).waited_loads >= 32


def misread(sm: int) -> Compiled:
    """The second product with rows side by side, compiled for rows apart; runs where `compiler` says."""
    with recording(sm) as found:
        ids, weight = empty(40, 2, dtype=torch.int64), weights("transposed", 8, 256, 128)
        launch.experts(
            empty(40, 128), ids, ids.float(), weight, empty(8, 128, 128), rule=Activation(), tile=Tile(64, 128, 64)
        )
    (started,) = (x for x in found.launches if x.kernel.__name__ == "rows_in_kernel")
    return compile_ahead(replace(started, arguments={**started.arguments, "TURNED": False}), sm)


def test_a_kernel_that_is_too_large_is_seen(compiler: Interpret) -> None:
    (deep,) = compiler(built, "many tokens", 89, {"num_stages": 8}, "rows_out")
    assert deep.shared_bytes > SHARED_LIMIT_BYTES[89]
    (narrow,) = compiler(built, "many tokens", 89, {"num_warps": 2}, "rows_out")
    assert narrow.spilled_bytes > 0
