"""`benchmarks/first_day.py`: its stages run here in small, a second run goes on where the first ended, and a wrong
kernel or engine ends it with the name of the wrong number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from tests import zoo
from tests.kernels.conftest import Interpret, interpret

__all__ = ["interpret"]
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The script's modules import each other by bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


# ---------------------------------------------------------------------- the plan and the run
def test_the_stages_fit_into_the_time_that_there_is() -> None:
    from first_day_plan import CALL_SECONDS, STAGES, START_SECONDS, plan

    assert START_SECONDS + sum(stage.seconds for stage in STAGES) < 14 * 60
    for bundle in {stage.needs for stage in STAGES}:
        assert sum(stage.seconds for stage in STAGES if stage.needs == bundle) <= CALL_SECONDS < 600
    page = (BENCHMARKS.parent / "docs" / "gpu.md").read_text()
    assert plan() in page and all(f"| {stage.name} | {stage.seconds} | " in page for stage in STAGES)


def run_day(results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "first_day.py"), "--results", str(results), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_writes_its_stages_and_a_second_one_finds_them(tmp_path: Path) -> None:
    """Where nothing was brought along, the stage says so and the run's status is that of what is missing."""
    first = run_day(tmp_path, "--dry", "--only", "engines", "--json")
    assert first.returncode == 3 and "no engines were brought along" in first.stdout
    path = tmp_path / "engines.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "done", "reason": ""}))
    again = run_day(tmp_path, "--dry", "--only", "engines", "--json")
    report = json.loads(again.stdout)
    assert again.returncode == 0 and report["stages"]["engines"]["state"] == "done"
    assert report["versions"]["torch"] == torch.__version__ and "interpreter" in report["machine"]["gpu"]


def test_without_a_gpu_nothing_is_begun(tmp_path: Path) -> None:
    done = run_day(tmp_path, "--only", "kernels")
    assert "the bundle 'kernels' is not here" in done.stdout and not list(tmp_path.iterdir())
    missing = run_day(tmp_path, "--bundle", str(tmp_path / "nothing"))
    assert missing.returncode == 2 and "first_day_pack.py makes them" in missing.stderr


def running(process: int) -> bool:
    """Whether a process is there and not merely waited for."""
    try:
        return Path("/proc", str(process), "stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    from first_day import limited

    started = tmp_path / "started"
    leaves_a_child = ["sh", "-c", f"sleep 60 & echo $! > {started}"]
    assert limited(leaves_a_child, dict(os.environ), 60) == 0
    child = int(started.read_text())
    for _ in range(600):  # it would sleep for longer than this
        if not running(child):
            break
        time.sleep(0.05)
    assert not running(child)
    assert limited(["sleep", "60"], dict(os.environ), 0.1) is None
    assert limited(["sh", "-c", "exit 7"], dict(os.environ), 60) == 7


def rows_of(folder: Path, **setting: Any) -> Any:
    from first_day_rows import Rows

    return Rows("stage", folder, **setting)


def test_a_stage_goes_on_where_its_time_ended(tmp_path: Path) -> None:
    from first_day_rows import read, run

    seen = []

    def work(rows: Any, end_after: int = 99) -> None:
        for case in rows.todo("abc"):
            seen.append(case)
            rows.check("someone", 1.0, "errors", 2.0)
            rows._end = rows._end if len(seen) < end_after else 0.0

    state, reason = run(rows_of(tmp_path, dry=True), lambda rows: work(rows, 2))
    assert (state, seen) == ("late", ["a", "b"]) and "c" in reason
    assert run(rows_of(tmp_path, dry=True), work) == ("done", "") and seen == ["a", "b", "c"]
    assert [row["case"] for row in read(tmp_path / "stage.json")["rows"]] == ["a", "b", "c"]
    assert rows_of(tmp_path, dry=False).done == []  # what a dry run found is no result


@pytest.mark.parametrize(("value", "bound"), [(2.1, 2.0), (float("nan"), 2.0), (float("inf"), float("inf"))])
def test_a_wrong_number_has_a_name_and_is_tried_again(tmp_path: Path, value: float, bound: float) -> None:
    from first_day_rows import run

    def work(rows: Any) -> None:
        for _ in rows.todo(["two tokens"]):
            rows.check("moec", value, "errors", bound)

    state, reason = run(rows_of(tmp_path), work)
    assert state == "wrong" and reason.startswith("stage: two tokens: moec: ") and f"at most {bound:.3g} " in reason
    assert rows_of(tmp_path).done == [] and rows_of(tmp_path).rows == []


def test_an_aim_that_is_missed_stops_nothing(tmp_path: Path) -> None:
    from first_day_report import missed
    from first_day_rows import run

    def work(rows: Any) -> None:
        for _ in rows.todo(["a"]):
            rows.aim("moec", 0.5, "times as fast", 1.3)

    rows = rows_of(tmp_path)
    assert run(rows, work) == ("done", "")
    assert missed(rows.rows) == "- a: moec: 0.5 times as fast, aim 1.3"


def test_beside_nothing_but_zeros_nothing_is_right() -> None:
    """What reads memory that nobody wrote may find zeros, in the reference too."""
    from first_day_engines import median_error
    from first_day_errors import distance, typical

    zeros = torch.zeros(3, 4)
    for far in (distance(zeros, zeros.double()), typical(zeros, zeros.double()), median_error(zeros, zeros, None)):
        assert far == float("inf")


def test_what_stands_at_padding_is_nobody_s() -> None:
    from first_day_engines import median_error

    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    logits, cache = torch.randn(2, 3, 7), torch.randn(2, 4, 3, 5)
    padded, kept = logits.clone(), cache.clone()
    padded[0, 0], kept[0, :, 0] = float("nan"), float("nan")
    assert median_error(padded, logits, mask) == median_error(kept, cache, mask) == 0
    padded[0, 1], kept[0, 0, 1, 0] = float("nan"), float("nan")
    assert median_error(padded, logits, mask) == median_error(kept, cache, mask) == float("inf")


# ---------------------------------------------------------------------- kernels
SPOILED = "odd bfloat16 plain transposed silu T=5"


def kernels(folder: str, wanted: list[str], spoil: str) -> tuple[str, str, int]:
    """The stage on some of its small cases; runs where `interpret` says."""
    sys.path.insert(0, str(BENCHMARKS))
    import first_day_kernels
    from first_day_rows import Rows, run

    right, calls = first_day_kernels.launch.experts, []

    def wrong(x: Any, *rest: Any, **named: Any) -> Any:
        calls.append(x)
        out = right(x, *rest, **named)
        if spoil == "number":
            out[-1] *= 1.05
        if spoil == "race" and len(calls) % 2 == 0:
            out[0, 0] += out[0, 0].abs() * 0.01
        if spoil == "unwritten":
            out[0, 0] = float("nan")
        return out

    trials = [t for t in first_day_kernels.trials(True) if t.name in wanted]
    assert len(trials) == len(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_day_kernels.launch, "experts", wrong)
        patch.setattr(first_day_kernels, "trials", lambda small: trials)
        rows = Rows("kernels", Path(folder))
        return *run(rows, lambda rows: first_day_kernels.kernels(rows, "cpu", True)), len(rows.done)


def test_right_kernels_pass(interpret: Interpret, tmp_path: Path) -> None:
    names = [SPOILED, "odd bfloat16 int4 straight silu T=5", "odd bfloat16 plain straight silu T=0"]
    assert interpret(kernels, str(tmp_path), names, "") == ("done", "", 3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("number", f"kernels: {SPOILED}: moec: "),
        ("race", f"kernels: {SPOILED}: moec, second run: 1 elements that differ"),
        ("unwritten", f"kernels: {SPOILED}: moec: inf relative error"),
    ],
)
def test_a_wrong_kernel_ends_the_stage_with_the_number(
    interpret: Interpret, tmp_path: Path, spoil: str, said: str
) -> None:
    state, reason, done = interpret(kernels, str(tmp_path), [SPOILED], spoil)
    assert state == "wrong" and reason.startswith(said) and done == 0


def test_all_cases_have_names_of_their_own_and_cover_what_they_should() -> None:
    from first_day_blocks import Whole
    from first_day_kernels import DTYPES, trials

    every = trials()
    assert {t.model for t in every if isinstance(t, Whole)} == {"mixtral", "qwen3", "gpt-oss", "deepseek"}
    assert len({t.name for t in every}) == len(every)
    every = [t for t in every if not isinstance(t, Whole)]
    assert {t.tokens for t in every} >= {0, 1, 16, 17, 4096}
    kinds = {(t.dtype, t.transposed) for t in every if t.form == "plain" and t.tokens == 4096}
    assert kinds >= {(dtype, turned) for dtype in DTYPES for turned in (False, True)}
    assert {t.form for t in every} == {"plain", "int4", "int8", "fp8"} and {t.size for t in every} >= {
        "qwen3",
        "gpt-oss",
    }


# ---------------------------------------------------------------------- published times
def test_published_times_become_aims(tmp_path: Path) -> None:
    """The aims of a cell, from the time alone: Qwen3's few tokens have to be 1.3 times faster, others as fast."""
    from first_day_anchors import ANCHORS, Balanced, Cell, tell
    from moe_gpu_contestants import SHAPES

    assert all(
        len(ANCHORS[shape][kind]) == len(ANCHORS["tokens"])
        for shape in SHAPES
        if shape != "gpt-oss"
        for kind in ("balanced", "skewed")
    )
    found = {}
    for shape, tokens, us in (
        ("qwen3", 16, 292 / 1.29),
        ("qwen3", 16, 292 / 1.31),
        ("mixtral", 1, 185.0),
        ("mixtral", 256, 752.0),
    ):
        rows = rows_of(tmp_path / f"{shape}{tokens}{us}")
        block = Balanced(SHAPES[shape], 16, "meta", torch.bfloat16)
        for cell in rows.todo([Cell(shape, tokens, 16)], lambda c: c.name):
            tell(rows, cell, block, us, {"bytes_per_s": 4.3e12})
        found[shape, tokens, us] = {r["who"] + " " + r["unit"]: (r["value"], r["met"]) for r in rows.rows if "met" in r}
    few, enough, mixtral, many = found.values()
    assert few == {"moec against the best peer times as fast": (1.29, False)}
    assert enough == {"moec against the best peer times as fast": (1.31, True)}
    assert mixtral["moec against the best peer times as fast"] == (1.022, True)
    bytes_of_two = 2 * 3 * 4096 * 14336 * 2 + 2 * 4096 * 2
    assert mixtral["moec of 4.8 TB/s"] == (round(bytes_of_two / 185e-6 / 4.8e12, 4), False)  # 0.79: just too slow
    assert many == {"moec against the best peer times as fast": (0.999, False)}


def test_balanced_routing_reads_all_experts_in_turn() -> None:
    from first_day_anchors import Balanced
    from moe_gpu_contestants import TOYS

    block = Balanced(TOYS["mixtral"], 16, "cpu", torch.bfloat16)
    x = block.take(1)
    first, second, third = (block.route(x)[1].flatten().tolist() for _ in range(3))
    assert sorted(first + second) == [0, 1, 2, 3] and first == third


def cells(folder: str, spoil: float) -> tuple[str, str, list[dict[str, Any]]]:
    """The stage on one toy cell; runs where `interpret` says."""
    sys.path.insert(0, str(BENCHMARKS))
    import first_day_anchors
    from first_day_rows import Rows, run

    right = first_day_anchors.launch.experts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_day_anchors.launch, "experts", lambda *a, **named: right(*a, **named) * spoil)
        patch.setattr(first_day_anchors, "cells", lambda small: [first_day_anchors.Cell("mixtral", 1, 16)])
        rows = Rows("anchors", Path(folder))
        return *run(rows, lambda rows: first_day_anchors.anchors(rows, "cpu", True)), rows.rows


def test_cells_are_judged_before_they_are_timed(interpret: Interpret, tmp_path: Path) -> None:
    state, _, rows = interpret(cells, str(tmp_path / "right"), 1.0)
    assert state == "done" and {r["who"] for r in rows if r["unit"] == "us"} == {
        "moec",
        "torch._grouped_mm",
        "transformers grouped_mm",
    }
    state, reason, rows = interpret(cells, str(tmp_path / "wrong"), 1.02)
    assert state == "wrong" and reason.startswith("anchors: mixtral 16-bit T=1: moec: ")
    assert [r["unit"] for r in rows] == ["relative error"]


# ---------------------------------------------------------------------- models
def models(folder: str, which: str, spoil: float) -> tuple[str, str, list[str]]:
    """The stage `accelerate` or `decoder` in small; runs where `interpret` says."""
    sys.path.insert(0, str(BENCHMARKS))
    import first_day_accelerate
    from first_day_rows import Rows, run

    from moec.kernels import dispatch

    right = dispatch.launch.experts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch.launch, "experts", lambda *a, **named: right(*a, **named) * spoil)
        patch.setattr(first_day_accelerate, "MODELS", ("gpt_oss",))
        patch.setattr(first_day_accelerate, "BATCHES", (2,))
        rows = Rows(which, Path(folder))
        state = run(rows, lambda rows: getattr(first_day_accelerate, which)(rows, "cpu", True))
    return *state, [row["who"] for row in rows.rows]


@pytest.mark.parametrize("which", ["accelerate", pytest.param("decoder", marks=pytest.mark.repeats)])
def test_models_are_held_against_the_untouched_one(interpret: Interpret, tmp_path: Path, which: str) -> None:
    state, reason, who = interpret(models, str(tmp_path / "right"), which, 1.0)
    assert (state, reason) == ("done", "") and "moec" in who
    state, reason, _ = interpret(models, str(tmp_path / "wrong"), which, 1.2)
    assert state == "wrong" and reason.startswith(f"{which}: ") and ": moec: " in reason


# ---------------------------------------------------------------------- engines
@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two engines as they travel: one block of experts, judged as float32 and as half precision."""
    from first_day_graphs import Facts, pack, strip
    from moe_gpu_contestants import TOYS, Block, Module

    from tests.cuda_stand_in.engines import lower

    block, work = Module(Block(TOYS["mixtral"], 16, "cpu", torch.float32)), tmp_path_factory.mktemp("engines")
    program = moec.capture(block, {"x": torch.zeros(3, 64)}, dynamic={"x": ("tokens", None)})
    made = [work / "mixtral-fp32", work / "mixtral-fp16"]
    lower(program, "fp32", made[0])
    shutil.copytree(made[0], made[1])
    for folder in made:
        form = folder.name.removeprefix("mixtral-")
        strip(folder, Facts(f"mixtral/{form}", f"onnxruntime:cuda,precision={form}"))
    return pack(made, work / "bundle").parent


def test_engines_travel_without_their_weights(bundle: Path, tmp_path: Path) -> None:
    """The weights are drawn anew, the same each time, and the engine still computes."""
    from first_day_engines import inputs_of, opened
    from first_day_graphs import DATA, fill, unpack

    assert (bundle / "engines.tar.xz").stat().st_size < 40_000
    data = []
    for place in (tmp_path / "a", tmp_path / "b"):
        folder = unpack([bundle], place)[1]
        assert not (folder / DATA).exists()
        fill(folder)
        data.append((folder / DATA).read_bytes())
    assert data[0] == data[1] and folder.name == "mixtral-fp32" and len(set(data[0])) > 200
    engine = opened(folder, "onnxruntime:cpu")
    (out,) = engine.run(inputs_of(engine, 5, 0, 0)).values()
    assert out.shape == (5, 64) and out.isfinite().all() and out.std() > 0.01


@pytest.mark.parametrize(("form", "bits"), [("fp32", 10), ("fp16", 2)])
def test_a_wrong_engine_ends_the_stage_with_the_number(bundle: Path, tmp_path: Path, form: str, bits: int) -> None:
    """The engine on the device has weights with fewer bits of mantissa: as many as TF32 has, or two."""
    import numpy as np
    from first_day_engines import engines, opened
    from first_day_graphs import DATA, Facts
    from first_day_rows import run

    def spoiled(folder: Path, target: str) -> Any:
        if folder.name.endswith(form):
            data = np.memmap(folder / DATA, np.uint8, "r+")
            for offset, length, *_ in Facts.read(folder).drawn:
                data[offset : offset + length].view(np.int32)[:] &= -(2 ** (23 - bits))
            data.flush()
        return opened(folder, target)

    assert run(rows_of(tmp_path / "right"), lambda rows: engines(rows, "cpu", True, [bundle])) == ("done", "")
    state, reason = run(rows_of(tmp_path), lambda rows: engines(rows, "cpu", True, [bundle], spoiled))
    assert state == "wrong" and reason.startswith(f"stage: mixtral/{form}: a prompt: ")


def test_attention_is_held_against_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import first_day_runtime
    from first_day_rows import run

    rows = rows_of(tmp_path / "right")
    assert run(rows, lambda rows: first_day_runtime.attention(rows, "cpu", True)) == ("done", "")
    assert len(rows.done) == 2
    exact = first_day_runtime.exact_attention
    monkeypatch.setattr(first_day_runtime, "exact_attention", lambda *given: exact(*given) * 1.01)
    state, reason = run(rows_of(tmp_path), lambda rows: first_day_runtime.attention(rows, "cpu", True))
    assert state == "wrong" and "attention of 64 tokens without a bias: GroupQueryAttention" in reason


def test_a_profiler_s_trace_is_counted(tmp_path: Path) -> None:
    """What PyTorch writes for the CPU has no kernels; a GPU's events have these categories and names."""
    from first_day_runtime import of_trace

    with torch.profiler.profile() as seen:
        torch.ones(3) + 1
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert len(trace["traceEvents"]) > 1 and of_trace(trace) == {"launches": 0, "kernels": {}}
    trace["traceEvents"] += [
        {"ph": "X", "cat": "kernel", "name": "gemm", "args": {"grid": [1, 1, 1]}},
        {"ph": "X", "cat": "kernel", "name": "gemm", "args": {"grid": [2, 1, 1]}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "args": {"bytes": 8}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 100}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel"},
    ]
    counted = {"copies to device": 1, "bytes to device": 8, "copies to host": 1, "bytes to host": 100}
    assert of_trace(trace) == {"launches": 2, **counted, "kernels": {"gemm": 2}}


@pytest.mark.repeats
def test_launches_and_memory_on_the_stand_in(tmp_path: Path) -> None:
    """The stand-in is asked twice, as it is where bundles are made and here, and says the same."""
    from first_day_engines import make_engine
    from first_day_graphs import Facts, pack, unpack
    from first_day_rows import run
    from first_day_runtime import launches, memory

    made = make_engine(zoo.captured("mixtral"), "mixtral/fp32", "fp32", tmp_path)
    assert made is not None
    foretold = Facts.read(made).expected
    if not foretold:
        pytest.skip("the stand-in cannot be built here")
    pack([made], tmp_path / "bundle")
    rows = rows_of(tmp_path)

    def work(rows: Any) -> None:
        folders = {"mixtral/int4": unpack([tmp_path / "bundle"], tmp_path / "x")[0]}
        launches(rows, "cpu", folders)
        memory(rows, "cpu", folders)

    assert run(rows, work) == ("done", "")
    assert foretold["step"]["launches"] == next(r["value"] for r in rows.rows if r["unit"] == "launches") > 0
    assert all(r["value"] == 0 for r in rows.rows if "less than foretold" in r["who"])
    assert next(r for r in rows.rows if r["who"] == "held on the device")["times"] >= 1


# ---------------------------------------------------------------------- the memory checker
CHECKER = """#!/bin/sh
# compute-sanitizer's words, around the command that it is given: --tool NAME --error-exitcode N COMMAND
tool=$2; shift 4; "$@"
echo "========= COMPUTE-SANITIZER"
{complaint}
if [ $tool = memcheck ]
then echo "========= ERROR SUMMARY: {errors} errors"
else echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
fi
"""


@pytest.mark.parametrize(
    ("complaint", "errors"), [("", 0), ("echo '========= Invalid __global__ read of size 16 bytes'", 2)]
)
def test_the_checker_s_summary_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str, errors: int
) -> None:
    """No checker is here: a script says its words, and runs `true` in place of the kernels."""
    import first_day_sanitizer
    from first_day_rows import run

    script = tmp_path / "compute-sanitizer"
    script.write_text(CHECKER.format(complaint=complaint, errors=errors))
    script.chmod(0o755)
    found = {"stage": "kernels", "state": "done", "cases": ["a"], "setting": {}, "rows": [], "notes": {}}
    monkeypatch.setattr(first_day_sanitizer, "read", lambda path: found)
    monkeypatch.setattr(first_day_sanitizer.sys, "executable", "true")
    rows = rows_of(tmp_path)
    state, reason = run(rows, lambda rows: first_day_sanitizer.sanitizer(rows, "cpu", (str(script),)))
    assert state == ("wrong" if errors else "done")
    assert not errors or "memcheck Invalid __global__ read of size 16 bytes: 2 errors" in reason


def test_without_a_checker_or_its_summary_nothing_is_claimed(tmp_path: Path) -> None:
    import first_day_sanitizer
    from first_day_rows import run

    state, reason = run(
        rows_of(tmp_path), lambda rows: first_day_sanitizer.sanitizer(rows, "cpu", ("no-such-program",))
    )
    assert (state, reason) == ("absent", "compute-sanitizer is not on this machine")
    with pytest.raises(ValueError, match="no summary"):
        first_day_sanitizer.errors_of("========= COMPUTE-SANITIZER\nDevice not supported")


# ---------------------------------------------------------------------- the bundles
def fat_binary(*images: tuple[int, int, bytes]) -> bytes:
    """kind, sm, code of each image, as nvcc lays them into `.nv_fatbin`."""
    import struct

    body = b""
    for kind, sm, code in images:
        header = struct.pack("<HHIQIIHHIIQ", kind, 0x101, 64, len(code), 0, 0, 0, sm // 10, sm, 0, 0)
        body += header.ljust(64, b"\0") + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_one_architecture_s_machine_code_stays() -> None:
    from first_day_pack import Image, images, keep

    binary = fat_binary((2, 80, b"a" * 8), (2, 90, b"b" * 16), (1, 90, b"p" * 8))
    library = bytearray(b"\x7fELF" + b"\x50\xed\x55\xba" + b"not one" + binary + fat_binary((2, 90, b"c" * 8)) + b"end")
    found = list(images(bytes(library)))
    assert [(i.kind, i.sm, i.size) for i in found] == [(2, 80, 8), (2, 90, 16), (1, 90, 8), (2, 90, 8)]
    assert isinstance(found[0], Image) and keep(library, 90) == {90: 24}
    assert library.count(b"a") == library.count(b"p") == 0
    assert b"b" * 16 in library and b"c" * 8 in library and library.endswith(b"end")
    with pytest.raises(SystemExit, match="no code for sm_70"):
        keep(library, 70)


def test_wheels_of_a_bundle_are_unpacked_and_moec_is_whole(tmp_path: Path) -> None:
    from first_day import moec_in, unpack

    with zipfile.ZipFile(tmp_path / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "VALUE = 5\n")
    site = tmp_path / "site"
    unpack([tmp_path], site)
    moec_in(site)
    code = (
        "from importlib.util import find_spec\nimport moec.backends, moec.passes, thing\n"
        "assert find_spec('moec.backends.onnxruntime') and find_spec('moec.passes.fuse_moe')\n"
        "print(moec.__file__, thing.VALUE)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    assert done.stdout == f"{site / 'moec' / '__init__.py'} 5\n", done.stderr


def test_a_bundle_that_is_too_large_is_refused(tmp_path: Path) -> None:
    from first_day_pack import LIMIT_BYTES, check_size, tree_bytes

    with (tmp_path / "large").open("wb") as file:
        file.truncate(LIMIT_BYTES - tree_bytes() - 1)
    assert check_size(tmp_path) == LIMIT_BYTES - 1
    with (tmp_path / "more").open("wb") as file:
        file.truncate(2)
    with pytest.raises(SystemExit, match="more than 64"):
        check_size(tmp_path)
