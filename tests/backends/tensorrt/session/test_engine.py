"""Loading a plan: everything that can be wrong is said in three lines, whatever needs no GPU without one; with one, it
runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.backends.tensorrt.building.worker import call
from moec.backends.tensorrt.edition import RTX
from moec.backends.tensorrt.gpu import find_gpu
from moec.backends.tensorrt.session.engine import FACTS_FILE, PLAN_FILE, TensorrtEngine, read_facts
from moec.errors import MoecError
from moec.targets.target import Target
from tests.backends.tensorrt.tiny import PROFILE, needs_rtx, request

TARGET = Target("tensorrt-rtx")
without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")


def folder_of(folder: Path, plan: bytes | None = b"plan", **changes: Any) -> Path:
    facts = {
        "inputs": [["x", "float32", ["rows", 8]]],
        "outputs": ["y"],
        "profiles": [{**PROFILE, "sizes": {"rows": [1, 4, 16]}}],
        "assumptions": {"sizes": ["rows <= 12"], "values": []},
        "edition": RTX.backend,
        "version": RTX.version(),
        "architectures": [],
        **changes,
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts))
    if plan is not None:
        (folder / PLAN_FILE).write_bytes(plan)
    return folder


def refusal(folder: Path) -> MoecError:
    with pytest.raises(MoecError) as caught:
        TensorrtEngine(folder, TARGET, RTX)
    return caught.value


def test_an_engine_that_was_never_built(tmp_path: Path) -> None:
    error = refusal(folder_of(tmp_path, plan=None))
    assert error.code == "M106" and "not built yet" in error.what and "moec build" in error.fix


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "1"}'])
def test_what_stands_beside_a_plan_must_be_ours(tmp_path: Path, text: str) -> None:
    (folder_of(tmp_path) / FACTS_FILE).write_text(text)
    with pytest.raises(MoecError, match="cannot be read") as caught:
        read_facts(tmp_path)
    assert caught.value.code == "M106"


@pytest.mark.parametrize(
    "changes",
    [{"version": "1.6.0.1"}, {"edition": "tensorrt", "version": "11.4.0.106"}],
    ids=["older", "the other library"],
)
def test_a_plan_of_another_version(tmp_path: Path, changes: dict[str, str]) -> None:
    error = refusal(folder_of(tmp_path, **changes))
    assert (
        error.code == "M301" and error.exit_code == 3 and changes["version"] in error.what and "moec build" in error.fix
    )


@without_gpu
@needs_rtx
def test_without_a_gpu(tmp_path: Path) -> None:
    error = refusal(folder_of(tmp_path))
    assert error.code == "M302" and error.exit_code == 3 and "no NVIDIA GPU" in error.what


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnTheGpu:
    """A real plan, run."""

    @needs_rtx
    def test_it_runs_at_every_size_of_its_profile(self, tmp_path: Path) -> None:
        call(request(tmp_path))
        engine = TensorrtEngine(folder_of(tmp_path, (tmp_path / PLAN_FILE).read_bytes()), TARGET, RTX)
        for rows in (1, 4, 16):
            x = torch.randn(rows, 8)
            assert torch.allclose(engine(x=x)["y"], x.relu(), atol=1e-6) and engine(x=x.cuda())["y"].is_cuda
        with pytest.raises(MoecError, match="outside of the engine's profiles") as caught:
            engine(x=torch.randn(17, 8))
        assert caught.value.code == "M211"

    @needs_rtx
    def test_a_truncated_plan(self, tmp_path: Path) -> None:
        call(request(tmp_path))
        plan = (tmp_path / PLAN_FILE).read_bytes()
        assert refusal(folder_of(tmp_path, plan[: len(plan) // 2])).code == "M106"

    @needs_rtx
    def test_another_gpu(self, tmp_path: Path) -> None:
        error = refusal(folder_of(tmp_path, architectures=[1]))
        assert error.code == "M302" and "sm1" in error.what
