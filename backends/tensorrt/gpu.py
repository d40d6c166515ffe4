"""The NVIDIA GPU of this machine, asked of the driver itself.

TensorRT must not be asked: without a driver its builder raises a TypeError, and its runtime returns an object that
crashes the interpreter when it is touched. torch must not be asked either, since its CPU build knows of no GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as the driver says.
        sm: compute capability as one number, e.g. 90.
        memory_bytes: of the device.
        cuda: the newest CUDA that the driver runs, e.g. 13000.
    """

    name: str
    sm: int
    memory_bytes: int
    cuda: int


@cache
def find_gpu(library: str = "libcuda.so.1") -> Gpu | None:
    """The first GPU, None where there is no driver or no device."""
    try:
        driver = ctypes.CDLL(library)
        if driver.cuInit(0):
            return None
    except (OSError, AttributeError):
        return None
    device, version, major, minor = (ctypes.c_int() for _ in range(4))
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    calls = (
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDriverGetVersion(ctypes.byref(version)),
        driver.cuDeviceGetName(name, 256, device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
    )
    return None if any(calls) else Gpu(name.value.decode(), 10 * major.value + minor.value, memory.value, version.value)
