"""The chain computes what `moec::experts` does, for every number of tokens up to the most, and compiles for every GPU
that the policy names."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.backends.tensorrt.plugins.chain import (
    ISA,
    SHARED_BYTES,
    ChainSizes,
    compile_chains,
    compiled,
    demand_plain,
    kernels,
)
from moec.backends.tensorrt.plugins.ptx import parameters
from moec.backends.tensorrt.policy import KERNELS
from moec.dialect import Activation, pack
from moec.errors import MoecError
from moec.kernels.ahead import SHARED_LIMIT_BYTES, Compiled
from moec.kernels.packed import ExpertCodes
from tests.backends.tensorrt.chains import FUSED, block, computed, sizes_of
from tests.dialect.experts_case import ACTIVATIONS
from tests.kernels.accuracy import MARGIN, problem, ratio
from tests.kernels.conftest import Interpret

CASES = {
    "few": ChainSizes(6, 2, 64, 48, 4, "bfloat16", Activation(), turned=True),
    "many": ChainSizes(128, 8, 2048, 768, 4096, "float16", Activation()),
    "odd": ChainSizes(5, 3, 33, 7, 40, "float32", Activation("relu2", gated=False), score_before=True),
    "packed": ChainSizes(8, 2, 256, 128, 300, "float16", Activation(), packed_in=(4, 128), packed_out=(8, 64)),
    "with biases": ChainSizes(32, 4, 2880, 2880, 512, "bfloat16", FUSED, b_in="bfloat16", b_out="float32", turned=True),
}


# ---------------------------------------------------------------------- what it computes
@pytest.mark.parametrize("most", [16, 40], ids=["few", "many"])
@pytest.mark.parametrize(
    ("dtype", "tokens"),
    [(torch.float32, (1, 16)), (torch.float16, (9,)), (torch.bfloat16, (9,))],
    ids=["fp32", "fp16", "bf16"],
)
def test_it_is_the_reference_for_any_number_of_tokens(
    interpret: Interpret, dtype: torch.dtype, tokens: tuple[int, ...], most: int
) -> None:
    for count in tokens:
        given = problem(FUSED, count, biases=True, dtype=dtype)
        got = interpret(computed, sizes_of(given, FUSED, most), given)
        swapped = replace(given, w_in=given.w_in.roll(24, 1), b_in=given.b_in.roll(24, 1))
        assert got.dtype == dtype and got.shape == given.x.shape
        assert ratio(got, given, FUSED) < MARGIN < ratio(got, swapped, FUSED), "the mutant has gate and up swapped"


@pytest.mark.parametrize("most", [16, 40], ids=["few", "many"])
def test_weights_before_the_experts_odd_widths_and_a_turned_matrix(interpret: Interpret, most: int) -> None:
    given = problem(Activation(), 11, hidden=33, inner=7)
    got = interpret(computed, sizes_of(given, Activation(), most, before=True, turned=True), given)
    assert ratio(got, given, Activation(), before=True) < MARGIN < ratio(got, given, Activation())
    assert (
        ratio(interpret(computed, sizes_of(given, Activation(), most, turned=True), given), given, Activation())
        < MARGIN
    )


def test_pairs_that_are_counted_first(interpret: Interpret) -> None:
    """For so many tokens a program cannot read all ids at once; the chain holds for few all the same."""
    given = problem(FUSED, 11, biases=True)
    got = interpret(computed, sizes_of(given, FUSED, 600), given)
    swapped = replace(given, ids=given.ids.roll(1, 0))
    assert ratio(got, given, FUSED) < MARGIN < ratio(got, swapped, FUSED)


@pytest.mark.parametrize("name", ["gelu_tanh", "relu2", "tanh"])
def test_other_activations(interpret: Interpret, name: str) -> None:
    """All of them are in the kernels' own tests."""
    rule = ACTIVATIONS[name]
    given = problem(rule, biases=True)
    got = interpret(computed, sizes_of(given, rule, 8), given)
    assert ratio(got, given, rule) < MARGIN < ratio(got, given, replace(rule, name="silu"))


@pytest.mark.parametrize("most", [16, 40], ids=["few", "many"])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights(interpret: Interpret, bits: int, most: int) -> None:
    """Unpacked in registers, with scales of both signs, as moec's symmetric grid has them; the mutant has their signs
    lost."""
    given = problem(tokens=11, hidden=64, inner=32, dtype=torch.float16)
    packed = replace(given, w_in=quantized(given.w_in, bits), w_out=quantized(given.w_out, bits))
    got = interpret(computed, sizes_of(packed, Activation(), most), packed)
    unsigned = replace(packed, w_in=replace(packed.w_in, scale=packed.w_in.scale.abs()))
    assert ratio(got, packed, Activation()) < MARGIN < ratio(got, unsigned, Activation())


def quantized(weight: torch.Tensor, bits: int) -> ExpertCodes:
    generator = torch.Generator().manual_seed(bits)
    signs = torch.where(torch.rand(*weight.shape[:2], weight.shape[2] // 32, generator=generator) < 0.5, -1.0, 1.0)
    codes = torch.randint(0, 2**bits, weight.shape, generator=generator)
    return ExpertCodes(
        pack(codes, bits), (signs * 2.0 ** (2 - bits) / weight.shape[2] ** 0.5).to(weight.dtype), bits=bits
    )


def test_with_tiles_of_its_own(interpret: Interpret) -> None:
    """Those that are compiled, cut to fit into every launch's shared memory."""
    given = problem(tokens=150, top_k=2, experts=2, dtype=torch.float16)
    got = interpret(computed, sizes_of(given, Activation(), 300), given, 90, None)
    assert ratio(got, given, Activation()) < MARGIN < ratio(got, given, Activation("gelu"))


# ---------------------------------------------------------------------- compiled
def described(sizes: ChainSizes, sm: int) -> list[tuple[Any, ...]]:
    return [
        (step, ptx, code, parameters(ptx, step.kernel), assembled(ptx, sm)) for step, ptx, code in compiled(sizes, sm)
    ]


def assembled(ptx: str, sm: int) -> str:
    """What NVIDIA's assembler, which comes with Triton, says of the PTX as it is handed over; empty when it takes
    it."""
    from triton.backends.nvidia.compiler import get_ptxas

    suffix = "a" if sm >= 90 else ""
    done = subprocess.run(
        [get_ptxas(sm).path, f"--gpu-name=sm_{sm}{suffix}", "-o", "/dev/null", "/dev/stdin"],
        input=ptx,
        capture_output=True,
        text=True,
    )
    return done.stderr if done.returncode else ""


GPUS = {80: "with biases", 86: "few", 87: "few", 89: "packed", 90: "many", 120: "odd", 121: "few"}


@pytest.mark.parametrize("sm", KERNELS)
def test_every_gpu(compiler: Interpret, sm: int) -> None:
    case = GPUS[sm]
    chain = compiler(described, CASES[case], sm)
    sorting = {"few": [], "many": ["count", "align"], "with biases": ["count", "align"]}.get(case, ["align"])
    names = [*sorting, "rows_in", "rows_out", "combine"]
    assert [step.kernel for step, *_ in chain] == [f"{name}_kernel" for name in names]
    for step, ptx, code, found, said in chain:
        assert (
            said == "" and re.search(rf"\.target sm_{sm}a?$", ptx, re.MULTILINE) and f".version {ISA[sm] / 10}" in ptx
        )
        wanted = [*["u64"] * len(step.inputs), *["u32"] * len(step.numbers), *["u64"] * len(step.outputs)]
        assert found == wanted and code.scratch_bytes == 0 and code.spilled_bytes == 0
        assert step.threads == 32 * code.warps and step.shared_bytes == code.shared_bytes <= min(
            SHARED_BYTES, SHARED_LIMIT_BYTES[sm]
        )
        assert ".loc" not in ptx and "/" not in re.sub(r"//.*", "", ptx), "no folder of this machine"


def test_the_assembler_sees_a_wrong_parameter(compiler: Interpret) -> None:
    (step, ptx, *_), *_ = compiler(described, CASES["few"], 80)
    assert "_param_3" in ptx
    assert "_param_3" in compiler(
        assembled, re.sub(rf"(\.u\d+) ([^,]*){step.kernel}_param_3", r"\1 \2other", ptx, count=1), 80
    )


def test_equal_sizes_are_one_file_and_others_are_not(compiler: Interpret, tmp_path: Path) -> None:
    same, other = (compiler(block, tmp_path, tokens=8, inner=inner) for inner in (24, 40))
    again = compiler(block, tmp_path, tokens=8)
    assert same["steps"] == again["steps"] and "sizes" not in same
    shared = {step["ptx"] for step in same["steps"]} & {step["ptx"] for step in other["steps"]}
    assert shared == {same["steps"][2]["ptx"]}, "of the sum alone, which does not depend on the inner width"
    assert all((tmp_path / step["ptx"]).stat().st_size > 1000 for step in same["steps"])


# ---------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scratch_bytes": 16}, "16 bytes of scratch"),
        ({"shared_bytes": SHARED_BYTES + 1}, "shared memory"),
        ({"warps": 8}, "256 threads"),
    ],
)
def test_what_a_plugin_cannot_have(change: dict[str, int], reason: str) -> None:
    code = Compiled("k", ".visible .entry k(\n)\n.reqntid 128\n{}", 32, 0, SHARED_BYTES, 0, 4)
    demand_plain(code, 90)
    with pytest.raises(MoecError, match=reason) as caught:
        demand_plain(replace(code, **change), 90)
    assert caught.value.code == "M208"


def test_kernels_that_would_be_started_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are another folder's; what a plugin says of them is compared with what they say themselves."""
    from moec.kernels import launch

    assert len(kernels(CASES["many"], 80)) == 5
    start = launch.start
    monkeypatch.setattr(
        launch, "start", lambda kernel, grid, *rest, **named: start(kernel, (grid[0] + 1, *grid[1:]), *rest, **named)
    )
    with pytest.raises(MoecError, match="otherwise than its plugin"):
        kernels(CASES["many"], 80)


def test_no_blocks_are_no_files(tmp_path: Path) -> None:
    assert compile_chains([], tmp_path) == ([], []) and list(tmp_path.iterdir()) == []
