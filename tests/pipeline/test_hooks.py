"""Hooks see every pass."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.pipeline.hooks import DumpHook, LoweringProgress, PrintHook, RecordHook, TimeHook
from moec.pipeline.pipeline import Pipeline
from moec.progress import Progress
from tests.pipeline.scaling import ScaleHead, ScaleRoughly, run


def test_dumps_are_numbered_over_several_pipelines(tmp_path: Path) -> None:
    hook = DumpHook(tmp_path / "dump")
    program = run(ScaleHead(2.0), hooks=[hook])
    Pipeline((ScaleRoughly(2.0),)).run(program, hooks=[hook])
    files = sorted((tmp_path / "dump").iterdir())
    assert [f.name for f in files] == ["000_capture.py", "001_scale_head.py", "002_scale_roughly.py"]
    assert files[1].read_text() == program.text() != files[0].read_text()


def test_steps_of_a_lowering_are_dumped_after_the_passes(tmp_path: Path) -> None:
    class Said(Progress):
        def __init__(self) -> None:
            self.said: list[str] = []

        def stage(self, name: str) -> None:
            self.said.append(name)

        def step(self, name: str, text: Callable[[], str]) -> None:
            self.said.append(name)

    hook, outer = DumpHook(tmp_path / "dump"), Said()
    run(ScaleHead(2.0), hooks=[hook])
    progress = LoweringProgress(outer, [hook])
    progress.stage("build")
    progress.step("export to ONNX", lambda: "first\n")
    progress.step("lower-attention", lambda: "second\n")
    files = sorted((tmp_path / "dump").iterdir())[2:]
    assert [f.name for f in files] == ["002_export_to_onnx.txt", "003_lower_attention.txt"]
    assert [f.read_text() for f in files] == ["first\n", "second\n"]
    assert outer.said == ["build", "export to ONNX", "lower-attention"], "who was told before is told still"


def test_a_dump_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MoecError) as error:
        run(ScaleHead(2.0), hooks=[DumpHook(tmp_path / "file" / "dump")])
    assert error.value.code == "M210"


def test_prints_all_or_only_what_is_named() -> None:
    every, some = io.StringIO(), io.StringIO()
    program = run(ScaleRoughly(2.0), ScaleHead(2.0), hooks=[PrintHook(file=every), PrintHook(["scale-head"], some)])
    assert every.getvalue().count("# after scale-") == 2
    assert some.getvalue().count("# after scale-") == 1 and program.text() in some.getvalue()


def test_records_programs_as_they_were() -> None:
    record = RecordHook()
    program = run(ScaleHead(2.0), ScaleHead(3.0), hooks=[record])
    assert [name for name, _ in record.programs] == ["capture", "scale-head(factor=2.0)", "scale-head(factor=3.0)"]
    assert record.programs[-1][1].digest() == program.digest() != record.programs[0][1].digest()


def test_times_every_pass() -> None:
    hook = TimeHook()
    run(ScaleHead(2.0), ScaleHead(3.0), hooks=[hook])
    assert [name for name, _ in hook.times] == ["scale-head(factor=2.0)", "scale-head(factor=3.0)"] and all(
        ms > 0 for _, ms in hook.times
    )
