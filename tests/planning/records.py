"""A record of a machine that nobody has, with numbers that can be added up by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.execution.machine import machine
from moec.files import kept
from moec.planning.probed import Calls, Experts, Products, Record, runtime_version
from moec.version import __version__

PRODUCTS = Products(rows=(1, 4), a_weight=(1e-9, 2e-9), an_operator=1e-3, several=5e-4, a_number=0.0)
EXPERTS = Experts(
    rows=(1, 4), a_weight=(1e-9, 3e-9), a_block=1e-2, an_expert=1e-4, idle=1e-5, a_number=0.0, an_inner=0.0
)  # fmt: skip
CALLS = Calls(
    lengths=(10, 30), a_score=(1e-9, 2e-9), a_call=1.0, a_layer=0.1, a_head=0.01, a_number=1e-6, a_norm=0.0,
    a_normed=0.0,
)  # fmt: skip


def record() -> Record:
    """Of this machine, with times that it does not have."""
    forms = ("fp32", "int4", "int4 rounded", "int8 rounded")
    return Record(
        made="2026-01-02T03:04:05+00:00",
        machine=machine(),
        versions={"moec": __version__, "onnxruntime": runtime_version()},
        read={"1": 1e10, "2": 2e10},
        products=dict.fromkeys(forms, PRODUCTS),
        experts=dict.fromkeys(forms, EXPERTS),
        calls=dict.fromkeys(("token", "prompt", "prompts"), CALLS),
        elementwise=1e-8,
        low=0.9,
        high=1.2,
    )


def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the weight cache lie in a folder of the test's own."""
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(kept.FOLDER, str(folder))
