"""The lines that open an engine in the runtimes and servers that it is laid out for."""

from __future__ import annotations

from pathlib import PurePosixPath

from moec.kernels.cpu.building import LIBRARY
from moec.kernels.cpu.library import uses_own_kernels
from moec.layouts.kserve import FILE
from moec.report.report import Report
from moec.targets.target import Target

RUNTIME, GENAI = "ONNX Runtime", "onnxruntime-genai"
TRITON, KSERVE = "Triton Inference Server", "KServe"


def client_code(client: str, report: Report, folder: str) -> str:
    """What opens the engine in one of these: Python, or for servers a command. `folder`: the engine's, as the
    reader names it."""
    target = Target.parse(report.target)
    own = uses_own_kernels(target.options)  # the graph has operators of a library beside it
    if client == TRITON:  # which reads the library's name from its working directory
        return (
            f"cd {folder} && tritonserver --model-repository=." if own else f"tritonserver --model-repository={folder}"
        )
    if client == KSERVE:
        return f"kubectl apply -f {PurePosixPath(folder, FILE)}"
    if client == GENAI:
        return f'import onnxruntime_genai\n\nmodel = onnxruntime_genai.Model("{folder}")'
    provider = "CUDAExecutionProvider" if target.device == "cuda" else "CPUExecutionProvider"
    path, options = PurePosixPath(folder, "model.onnx"), ""
    lines = ["import onnxruntime", ""]
    if own:
        library, options = PurePosixPath(folder, LIBRARY), "options, "
        lines += ["options = onnxruntime.SessionOptions()", f'options.register_custom_ops_library("{library}")']
    lines.append(f'session = onnxruntime.InferenceSession("{path}", {options}providers=["{provider}"])')
    return "\n".join(lines)
