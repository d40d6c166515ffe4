"""Builds run in a process of their own: a crash of the library, or of the driver under it, is an error message and not
the end of moec.

`call` is the side of the compiler, `main` that of the process: a request as JSON on stdin, the answer as JSON in the
file that it names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moec.errors import MoecError

_TAIL = 300  # characters of stderr that are shown when the process died


def call(
    request: Mapping[str, Any], program: tuple[str, ...] = ("-P", "-m", "moec.backends.tensorrt.building.worker")
) -> dict[str, Any]:
    """Have a plan built, see `moec.backends.tensorrt.building.builder.build_plan`.

    Raises:
        MoecError: as raised there; M303 when the process died.
    """
    with tempfile.TemporaryDirectory(prefix="moec-") as folder:
        answer = Path(folder) / "answer.json"
        environment = {**os.environ, "MOEC_ANSWER": str(answer)}
        done = subprocess.run(
            [sys.executable, *program], input=json.dumps(request), capture_output=True, text=True, env=environment
        )
        if done.returncode or not answer.exists():
            raise MoecError(
                "M303", f"the build of the plan {_end(done.returncode)}{_last(done.stderr)}", str(request["onnx"]), _FIX
            )
        data: dict[str, Any] = json.loads(answer.read_text())
    if "error" in data:
        raise MoecError(**data["error"])
    return data


_FIX = "check the driver with nvidia-smi and the memory that is free; try smaller max_… options of the target"


def _end(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _last(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f": {lines[-1][:_TAIL]}" if lines else ""


def main() -> None:
    """Build what stdin says."""
    from moec.backends.tensorrt.building.builder import build_plan, inspect_plan
    from moec.backends.tensorrt.edition import EDITIONS
    from moec.backends.tensorrt.gpu import find_gpu

    request = json.load(sys.stdin)
    edition = EDITIONS[request["edition"]]
    try:
        if edition.builds_on_gpu and find_gpu() is None:  # the library itself would not say it so well
            raise MoecError(
                "M302",
                f"{edition.title} builds on an NVIDIA GPU, and there is none here",
                edition.backend,
                "build on the GPU's machine",
            )
        library = edition.load()
        answer = build_plan(library, request)
        if find_gpu() is not None:
            answer |= inspect_plan(library, Path(request["plan"]))
    except MoecError as error:
        answer = {"error": {"code": error.code, "what": error.what, "where": error.where, "fix": error.fix}}
    Path(os.environ["MOEC_ANSWER"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
