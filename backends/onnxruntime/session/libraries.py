"""The libraries that ONNX Runtime's CUDA provider loads: which of them are here, and what needs them.

The runtime itself says nothing to its caller where one is missing: it leaves the provider out and computes on the CPU.
So they are looked for before it is asked. They come from the system, or from NVIDIA's wheels, which `preload` finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from moec.errors import MoecError

PROVIDER = "CUDAExecutionProvider"
DRIVER = "libcuda.so.1"
# operators that the provider computes with cuDNN alone; `ReduceMean` and `ReduceSumSquare` too where the reduced
# dimensions are neither the first nor the last ones
CUDNN_OPERATORS = (
    "Conv", "ConvTranspose", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceLogSumExp", "MaxPool",
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization", "InstanceNormalization", "LSTM", "GRU",
)  # fmt: skip


@dataclass(frozen=True)
class Library:
    """A shared library.

    Attributes:
        file: the name that the loader looks for.
        title: as NVIDIA calls it.
        needs: what needs it, in words.
        install: where it comes from.
    """

    file: str
    title: str
    needs: str
    install: str

    @property
    def here(self) -> bool:
        """Whether the loader finds it."""
        try:
            ctypes.CDLL(self.file)
        except OSError:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.file} ({self.title})"


def libraries() -> tuple[Library, ...]:
    """All that the provider of the installed runtime loads, the driver first and cuDNN last; none where the runtime was
    built without CUDA. The versions are those of the CUDA release that it was built with."""
    import onnxruntime as ort

    if PROVIDER not in ort.get_available_providers():
        return ()
    major = str(getattr(ort, "cuda_version", "") or "13").split(".")[0]
    cuda, every = f'pip install "onnxruntime-gpu[cuda]" (CUDA {major})', "every engine on CUDA"
    own = [("cudart", "the CUDA runtime"), ("cublasLt", "cuBLASLt"), ("cublas", "cuBLAS")]
    return (
        Library(DRIVER, "NVIDIA's driver", every, f"install a driver for CUDA {major}"),
        *(Library(f"lib{name}.so.{major}", title, every, cuda) for name, title in own),
        Library("libcurand.so.10", "cuRAND", every, cuda),
        Library(
            "libcudnn.so.9",
            "cuDNN",
            "an engine with " + ", ".join(CUDNN_OPERATORS[:3]) + ", pooling, batch norms or LSTMs",
            f"pip install nvidia-cudnn-cu{major}",
        ),
    )


def missing() -> tuple[Library, ...]:
    """Those of `libraries` that are not here."""
    preload()
    return tuple(library for library in libraries() if not library.here)


def phrases(lost: Sequence[Library]) -> tuple[str, ...]:
    """What is missing, for people: those that the same engines need together, and where they come from."""
    found = []
    for needs in dict.fromkeys(library.needs for library in lost):
        own = [library for library in lost if library.needs == needs]
        install = "; ".join(dict.fromkeys(library.install for library in own))
        found.append(f"{', '.join(map(str, own))}, which {needs} needs: {install}")
    return tuple(found)


@cache
def preload() -> None:
    """Load what NVIDIA's wheels hold, so that the provider finds it by name; what is not there is left out, without a
    word: the runtime's own function prints."""
    import onnxruntime as ort

    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def device_count() -> int:
    """How many GPUs the CUDA runtime sees; 0 where it or a driver is missing. Asks CUDA itself: a PyTorch for CPUs may
    stand beside."""
    preload()
    runtime = next((library.file for library in libraries() if "cudart" in library.file), None)
    found = ctypes.c_int(0)
    try:
        failed = runtime is None or ctypes.CDLL(runtime).cudaGetDeviceCount(ctypes.byref(found))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else found.value


def cuda_is_usable() -> bool:
    """Whether engines run on CUDA here; cuDNN is asked for by those that need it."""
    return not any("every engine" in library.needs for library in missing()) and device_count() > 0


def require_cuda(where: str) -> None:
    """Raise M302 where there is no driver or GPU, M301 where libraries are missing, M301 for a runtime without CUDA."""
    if not libraries():
        raise MoecError("M301", "this ONNX Runtime has no CUDA", where, "pip install onnxruntime-gpu")
    lost = [library for library in missing() if "every engine" in library.needs]
    without_driver = any(library.file == DRIVER for library in lost)
    if lost and not without_driver:
        names = ", ".join(library.file for library in lost)
        raise MoecError("M301", f"libraries of CUDA are not found: {names}", where, lost[0].install)
    if without_driver or device_count() < 1:
        fix = "run it where there is a CUDA 13 GPU, or compile the model for the CPU with --target onnxruntime"
        raise MoecError("M302", "there is no CUDA device here", where, fix)


def without_cudnn(reason: str, where: str) -> MoecError:
    """The error M301 for what the runtime says of an operator that it has only in cuDNN."""
    cudnn = libraries()[-1]
    said = f"{reason} on CUDA needs {cudnn.title}, and {cudnn.file} is not found"
    return MoecError("M301", said, where, f"{cudnn.install}, or compile the model with --target onnxruntime")
