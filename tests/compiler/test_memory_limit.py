"""A compile holds what it may: the limit decides how it works, refuses what cannot be done, and is kept."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from moec.compiler.memory_limit import MIB, kept_below, streamed_bytes, within_limit
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.execution.memory import limited, own_bytes, total_bytes
from moec.frontend.module_source import ModuleSource
from moec.progress import Progress
from moec.proof.inputs import compared_bytes, searched_rows
from moec.weights.weight import BLOCK_BYTES, block_bytes
from tests import zoo
from tests.moe_module import MoeModel, source_of

GIB = 2**30


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def done(self, detail: str = "") -> None:
        self.lines.append(detail)


@pytest.fixture(scope="module")
def source() -> ModuleSource:
    return source_of(MoeModel())


def test_within_it_less_is_read_at_a_time_and_the_machine_has_no_more() -> None:
    lines, most = Lines(), own_bytes() + 300 * MIB
    with kept_below(most, lines):
        assert total_bytes() == most and block_bytes() < BLOCK_BYTES / 2
    assert block_bytes() == BLOCK_BYTES and total_bytes() > most
    assert "of its own" in lines.lines[-1] and "MORE" not in lines.lines[-1]
    with pytest.warns(UserWarning, match="MORE than the"), kept_below(most, lines):
        held = bytearray(b"x") * (400 * MIB)
        time.sleep(0.1)
        del held


def test_too_little_is_refused_with_what_is_enough(source: ModuleSource) -> None:
    captured = source.capture()
    with pytest.raises(MoecError) as caught, kept_below(64 * MIB, Progress()):
        pass
    assert caught.value.code == "M220" and "64.0 MiB are allowed" in caught.value.what
    tight = Options(max_ram=own_bytes() + 162 * MIB, verify="streamed")
    with pytest.raises(MoecError) as caught:
        within_limit(source, captured, tight)
    enough = caught.value.fix.split()[-1]
    assert within_limit(source, captured, replace(tight, max_ram=enough)) == "streamed"


def test_logits_of_a_large_vocabulary_count_and_a_search_looks_at_fewer_texts_where_memory_is_scarce() -> None:
    program, most = zoo.captured("mixtral"), {"batch": 2, "sequence": 131, "past_sequence": 0}
    logits = 2 * 131 * 96 * 4
    assert compared_bytes(program, most) == 4 * logits
    assert streamed_bytes(program, Options()) >= 10 * 2 * MIB + 4 * logits
    assert searched_rows(program, most) == 8
    with limited(8 * 4 * 2 * logits):  # an eighth of it holds 4 rows
        assert searched_rows(program, most) == 4
    with limited(MIB):
        assert searched_rows(program, most) == 2


def test_what_does_not_fit_is_streamed(source: ModuleSource, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = source.capture()
    assert within_limit(source, captured, Options()) == "auto", "no limit of the user's: as ever"
    room = own_bytes() + 2 * GIB
    assert within_limit(source, captured, Options(max_ram=room)) == "full"
    monkeypatch.setattr(ModuleSource, "loaded_bytes", 3 * GIB)
    assert within_limit(source, captured, Options(max_ram=room)) == "streamed"
    with pytest.raises(MoecError, match="streamed") as caught:
        within_limit(source, captured, Options(max_ram=room, verify="full"))
    assert caught.value.code == "M220"
    monkeypatch.undo()
    wide = Options(max_ram=room, calibration="text", calibration_tokens=10**7)
    with pytest.raises(MoecError, match="M220"):
        within_limit(source, captured, wide)  # what is fitted to so many tokens


def peak_of(command: list[str], log: Path) -> int:
    """The most that a process holds of its own, looked at from outside."""
    found, status = 0, Path("/proc")
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            with suppress(OSError, StopIteration):
                lines = (status / str(process.pid) / "status").read_text().splitlines()
                found = max(found, int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024)
            time.sleep(0.005)
    assert process.returncode == 0, log.read_text()
    return found


@pytest.mark.repeats
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process holds")
def test_a_model_of_300_mb_is_compiled_in_what_is_allowed_and_without_a_limit_in_more(tmp_path: Path) -> None:
    from tests.zoo import save

    sizes = {"hidden_size": 512, "intermediate_size": 3072, "num_local_experts": 8}
    save("mixtral", tmp_path / "model", **sizes)
    command = [sys.executable, "-m", "moec", "compile", str(tmp_path / "model"), "-o", str(tmp_path / "engine")]
    limit = 640 * MIB
    within = peak_of([*command, "--max-ram", "640MiB"], tmp_path / "log")
    assert "of its own, of 640 MiB allowed" in (tmp_path / "log").read_text()
    assert within < limit < 1000 * MIB < peak_of(command, tmp_path / "other log")
