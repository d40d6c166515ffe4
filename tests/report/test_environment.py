"""The versions that made an engine are named, and nothing that tells machines apart."""

from __future__ import annotations

import platform
from importlib.metadata import version

from moec.report.environment import environment
from moec.version import __version__


def test_versions_are_those_that_run() -> None:
    found = environment({"onnxruntime": "1.2.3", "torch": "0"})
    assert (found["moec"], found["python"]) == (__version__, platform.python_version())
    assert found["onnxruntime"] == "1.2.3" and found["torch"] == "0"  # a backend knows its own packages best
    assert environment()["torch"] == version("torch")


def test_the_machine_is_named_by_its_kind_alone() -> None:
    found = environment()
    assert found["system"] == f"{platform.system()} {platform.machine()}" and found["cpu_capability"]
    assert not platform.node() or platform.node() not in found.values()
