"""TensorRT's real Python bindings without TensorRT: libraries that export their few symbols and give null pointers for
everything.

What is Python in the bindings, the whole of `tensorrt.plugin`, runs on them as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "tensorrt_cu13_bindings"
needs_bindings = pytest.mark.skipif(
    find_spec("tensorrt_bindings") is None or shutil.which("cc") is None,
    reason=f"needs a C compiler and TensorRT's Python bindings alone: pip install --no-deps {PACKAGE}",
)
_NULL = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
)
_SOURCE = "\n".join(
    [
        *(f"void *{name}(void) {{ return 0; }}" for name in _NULL),
        "int getNvOnnxParserVersion(void) { return 110400; }",
        "_Bool initLibNvInferPlugins(void *logger, char const *names) { return 1; }",
        "",
    ]
)


def write_libraries(folder: Path) -> Path:
    """Compile the libraries that the bindings are linked to."""
    (folder / "null.c").write_text(_SOURCE)
    names = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
    for library in (f"{name}.so.{major}" for major in (10, 11) for name in names):
        command = [
            "cc",
            "-shared",
            "-fPIC",
            str(folder / "null.c"),
            f"-Wl,-soname,{library}",
            "-o",
            str(folder / library),
        ]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def ask(libraries: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Have `tests.backends.tensorrt.answers` do something in a process of its own, with the bindings."""
    known = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    command = [sys.executable, "-m", "tests.backends.tensorrt.answers"]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=known, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
