"""The stand-in sees what is wrong: launches and copies that a GPU refuses, products in TF32, an engine that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.cuda_stand_in.build import Missing, headers, library
from tests.cuda_stand_in.observation import Observation, Part, plain, read_log, read_places
from tests.cuda_stand_in.observe import Job, observe_all

START = """
import ctypes as c
cudart, cublas = c.CDLL("libcudart.so.13"), c.CDLL("libcublas.so.13")
class Size(c.Structure): _fields_ = [(axis, c.c_uint) for axis in "xyz"]
cudart.cudaGetErrorName.restype = c.c_char_p
said = lambda error: print(cudart.cudaGetErrorName(error).decode())
kernel = c.create_string_buffer(b"kernel")
cudart.__getattr__("__cudaRegisterFunction")(None, kernel, None, b"_ZN4moec6kernelIfEEvPT_", 0, *[None] * 5)
launch = lambda grid, block, shared=0, which=kernel: said(
    cudart.cudaLaunchKernel(which, Size(*grid), Size(*block), None, c.c_size_t(shared), None))
device, handle, one = c.c_void_p(), c.c_void_p(), c.c_float(1)
cudart.cudaMalloc(c.byref(device), c.c_size_t(64))
host = c.create_string_buffer(128)
copy = lambda to, source, size, kind: said(cudart.cudaMemcpy(to, source, c.c_size_t(size), kind))
TO_DEVICE, TO_HOST = 1, 2
cublas.cublasCreate_v2(c.byref(handle))
gemm = lambda m, n, k, lda: cublas.cublasSgemm_v2(handle, 0, 0, m, n, k, c.byref(one), device, lda, device, k,
                                                  c.byref(one), device, m)
cudart.stand_in_mark(b"job 0")
cudart.stand_in_mark(b"prompt")
"""


def happened(code: str, folder: Path) -> tuple[Part, list[str]]:
    """What the stand-in writes of a few calls, and the errors that they return."""
    log = folder / "log"
    done = subprocess.run(
        [sys.executable, "-c", START + code + '\ncudart.stand_in_mark(b"end")'],
        env={**os.environ, "LD_LIBRARY_PATH": str(library()), "CUDA_STAND_IN_LOG": str(log)},
        capture_output=True,
        text=True,
        check=True,
    )
    ((parts, error),) = read_log(log.read_text())
    assert not error
    return parts["prompt"], done.stdout.split()


@pytest.mark.parametrize(
    ("call", "verdict", "error"),
    [
        ("launch((2, 1, 1), (32, 1, 1))", "ok", "cudaSuccess"),
        ("launch((0, 1, 1), (32, 1, 1))", "empty-grid", "cudaErrorInvalidConfiguration"),
        ("launch((1, 65536, 1), (32, 1, 1))", "grid-too-large", "cudaErrorInvalidConfiguration"),
        ("launch((1, 1, 1), (2048, 1, 1))", "block-too-large", "cudaErrorInvalidConfiguration"),
        ("launch((1, 1, 1), (32, 1, 1), 49153)", "shared-memory", "cudaErrorInvalidConfiguration"),
        ("cudart.cudaFuncSetAttribute(kernel, 8, 65536); launch((1, 1, 1), (32, 1, 1), 65536)", "ok", "cudaSuccess"),
        ("launch((1, 1, 1), (32, 1, 1), which=host)", "unknown", "cudaErrorInvalidDeviceFunction"),
    ],
)
def test_launches_are_checked_as_cuda_checks_them(call: str, verdict: str, error: str, tmp_path: Path) -> None:
    part, errors = happened(call, tmp_path)
    assert [k.verdict for k in part.kernels] == [verdict]
    assert errors == [error]
    assert part.launches == 1
    assert (part.empty_grids == []) is (verdict != "empty-grid")
    assert (part.refused == []) is (verdict == "ok")
    assert verdict == "unknown" or part.names() == Counter(kernel=1)


@pytest.mark.parametrize(
    ("call", "faults", "error"),
    [
        ("copy(device, host, 64, TO_DEVICE)", 0, "cudaSuccess"),
        ("copy(device, host, 65, TO_DEVICE)", 1, "cudaErrorInvalidValue"),
        ("copy(device.value + 60, host, 8, TO_DEVICE)", 1, "cudaErrorInvalidValue"),
        ("copy(host, device, 8, TO_DEVICE)", 1, "cudaErrorInvalidMemcpyDirection"),
        ("copy(host, host, 8, TO_HOST)", 1, "cudaErrorInvalidMemcpyDirection"),
        ("said(cudart.cudaFree(host))", 1, "cudaErrorInvalidValue"),
        ("cudart.cudaStreamBeginCapture(None, 0); said(cudart.cudaDeviceSynchronize())", 1, "cudaErrorStreamCapture"),
        ("cudart.cudaStreamBeginCapture(None, 0); copy(device, host, 8, TO_DEVICE)", 1, "cudaErrorStreamCapture"),
    ],
)
def test_what_cuda_refuses_is_a_fault(call: str, faults: int, error: str, tmp_path: Path) -> None:
    call = call.replace("device.value + 60", "c.c_void_p(device.value + 60)")
    part, errors = happened(call, tmp_path)
    assert len(part.faults) == faults
    assert errors[0].startswith(error)


def test_copies_memory_and_products_are_counted(tmp_path: Path) -> None:
    part, errors = happened(
        "copy(device, host, 8, TO_DEVICE); copy(host, device, 4, TO_HOST); gemm(2, 3, 4, 2)\n"
        "cublas.cublasSetMathMode(handle, 3); gemm(2, 3, 4, 2); gemm(2, 3, 4, 1)\n"
        "more = c.c_void_p(); cudart.cudaMalloc(c.byref(more), c.c_size_t(100)); cudart.cudaFree(more)",
        tmp_path,
    )
    assert errors == ["cudaSuccess"] * 2
    assert (part.copied("host", "device"), part.copied("device", "host"), part.copied("device", "device")) == (
        [8],
        [4],
        [],
    )
    assert [p.sizes for p in part.products] == [(2, 3, 4, 1)] * 3
    assert [p.tf32 for p in part.products] == [False, True, True], "TF32 from the call on that sets it"
    assert part.faults == ["cublasSgemm: sizes or leading dimensions are refused"], "the last has too short columns"
    assert (part.allocations_bytes, part.held_bytes, part.most_bytes) == ([100], 64, 164)


def test_names_and_places_are_read() -> None:
    assert plain("void onnxruntime::flash::flash_fwd_kernel<a::b<c>, (bool)1>(d::e<f>)") == "flash_fwd_kernel"
    where = "[V:onnxruntime:, session_state.cc:1 VerifyEachNodeIsAssignedToAnEp] "
    placed = "Node(s) placed on [{}ExecutionProvider]. Number of nodes: 2"
    lines = [placed.format("CPU"), "  Concat (one)", placed.format("CUDA"), "  MoE (two)", "  MemcpyFromHost (three)"]
    said = "\n".join([where + line for line in lines] + ["[V:onnxruntime:, other.cc:1 Other] Loop (four)"])
    seen = Observation(read_places(said), {}, [])
    assert (seen.on_cpu, seen.on_cuda, seen.memcpy_nodes) == (Counter(Concat=1), Counter(MoE=1), 1)


def test_kernels_of_attention_and_an_unknown_event() -> None:
    mark, launch = "mark 0 0 {}\n", "launch ok 1,1,1 1,1,1 0 {}\n"
    names = ["_ZN5flash16flash_fwd_kernelEv", "_Z20softmax_warp_forwardv", "_ZN1a28SoftmaxTopKWarpBitonicKernelEv"]
    log = mark.format("job 0") + mark.format("prompt") + "".join(launch.format(n) for n in names) + mark.format("end")
    ((parts, _),) = read_log(log)
    assert parts["prompt"].attention == Counter(flash_fwd_kernel=1, softmax_warp_forward=1)
    with pytest.raises(ValueError, match="unknown event"):
        read_log(log + "nonsense 1\n")


def test_an_engine_that_does_not_open_says_why(tmp_path: Path) -> None:
    found = observe_all([Job(str(tmp_path / "nothing")), Job(str(tmp_path / "neither"))])
    assert len(found) == 2
    assert all("model.onnx" in seen.error for seen in found)


@pytest.mark.skipif(bool(torch.version.cuda), reason="PyTorch is a CUDA build here, which is said first")
def test_what_is_missing_skips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="g\\+\\+ and nm not found"):
        library.__wrapped__()
    monkeypatch.setenv("CUDA_INCLUDE", str(tmp_path))
    assert headers() == tmp_path
