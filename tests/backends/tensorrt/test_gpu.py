"""The driver is asked without any library of NVIDIA's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moec.backends.tensorrt.gpu import find_gpu

DRIVER = """
int cuInit(unsigned f){{return {status};}}
int cuDeviceGet(int*d,int n){{*d=0;return 0;}} int cuDriverGetVersion(int*v){{*v=13000;return 0;}}
int cuDeviceGetName(char*s,int n,int d){{__builtin_strcpy(s,"Stub");return 0;}}
int cuDeviceGetAttribute(int*v,int a,int d){{*v=a==75?8:6;return 0;}}
int cuDeviceTotalMem_v2(unsigned long*m,int d){{*m=1ul<<34;return 0;}}
"""


def driver(folder: Path, status: int) -> str:
    """A library with the driver's interface: `cuInit` returns `status`."""
    source, library = folder / "driver.c", folder / f"libdriver{status}.so"
    source.write_text(DRIVER.format(status=status))
    if subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", str(source), "-o", str(library)], capture_output=True
    ).returncode:
        pytest.skip("there is no C compiler here")
    return str(library)


def test_no_driver_is_no_gpu(tmp_path: Path) -> None:
    assert find_gpu(str(tmp_path / "libnothing.so")) is None
    (tmp_path / "libbroken.so").write_bytes(b"not a library")
    assert find_gpu(str(tmp_path / "libbroken.so")) is None


def test_what_the_driver_says(tmp_path: Path) -> None:
    gpu = find_gpu(driver(tmp_path, 0))
    assert gpu is not None and (gpu.name, gpu.sm, gpu.memory_bytes, gpu.cuda) == ("Stub", 86, 1 << 34, 13000)


def test_a_driver_without_a_device_is_no_gpu(tmp_path: Path) -> None:
    assert find_gpu(driver(tmp_path, 100)) is None  # CUDA_ERROR_NO_DEVICE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_agrees_with_torch() -> None:
    found, (major, minor) = find_gpu(), torch.cuda.get_device_capability(0)
    assert found is not None and found.sm == 10 * major + minor and sys.maxsize > found.memory_bytes > 1 << 30
