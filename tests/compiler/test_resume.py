"""A compile that was killed goes on: what it had made is used, the engine has the same bytes, nothing else is left."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moec import api
from moec.errors import MoecError
from moec.execution.memory import own_bytes
from moec.files import kept
from moec.frontend import kept_capture
from moec.frontend.kept_capture import FACTS
from moec.quantization import rounding
from moec.weights.remembered import keep, recall

CODE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

def samples():
    return {"input": torch.randn(3, 64)}
"""
PIPELINE = "quantize(bits=8, method=hqq)"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    monkeypatch.setattr(rounding, "WORTH_KEEPING", 0)
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("a user's")
    return tmp_path / "kept"


def compiled(folder: Path, name: str, **more: Any) -> dict[str, str]:
    """The hash of each file of the engine."""
    out = folder / "out" / name
    api.compile(f"{folder / 'net.py'}:net:samples", out=out, pipeline=PIPELINE, **more)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def killed(run: Callable[[], object], wait: Callable[[int], None] = lambda _: None) -> int:
    """How a child ended that ran this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
        child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(0)
    wait(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def deadly(place: Any, name: str, at: int) -> Callable[[], None]:
    """Lets a function end its process after it was called so often, as `kill -9` does."""
    real, calls = getattr(place, name), list[int]()

    def then_killed(*args: Any, **named: Any) -> Any:
        found = real(*args, **named)
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return lambda: setattr(place, name, then_killed)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir() if path.name.startswith("."))


def test_it_goes_on_from_what_is_there(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compiled(tmp_path, "engine", resume=False)
    assert not place.exists(), "nothing is read or written"
    for at, kill in enumerate((deadly(kept_capture, "keep_capture", 1), deadly(kept, "write", 1)), 1):
        assert killed(lambda kill=kill: (kill(), compiled(tmp_path, "other"))) == -signal.SIGKILL  # type: ignore[misc]
        assert len(kept.entries()) == at and leftovers(tmp_path) and not (tmp_path / "out" / "other").exists()
    captures, searched = list[int](), list[int]()
    capture, refined = kept_capture.capture, rounding._refined
    monkeypatch.setattr(kept_capture, "capture", lambda *a, **k: (captures.append(1), capture(*a, **k))[1])
    monkeypatch.setattr(rounding, "_refined", lambda *a: (searched.append(1), refined(*a))[1])
    assert compiled(tmp_path, "other", max_ram=own_bytes() + 2**31) == whole, "with smaller blocks, too"
    assert not captures and len(searched) == 1, "the capture and the first of two matrices were there"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["engine", "mine.txt", "other"]
    spoil_scales()
    with pytest.raises(MoecError, match="M1"):  # the proof is made anew: what is wrong, and whole by its hash, fails
        compiled(tmp_path, "third")
    assert not (tmp_path / "out" / "third").exists()


def spoil_scales() -> None:
    """Multiply all scales that are kept."""
    for entry in kept.entries():
        found = recall(entry.path.stem)
        if found is not None and FACTS not in found:
            assert keep(entry.path.stem, {**found, "1": found["1"] * 1.5})


@pytest.mark.repeats
@pytest.mark.parametrize("seed", range(8))
def test_killed_anywhere_it_goes_on(seed: int, tmp_path: Path) -> None:
    since = time.monotonic()
    whole = compiled(tmp_path, "engine", resume=False)
    delay = random.Random(seed).uniform(0, time.monotonic() - since)

    def wait(child: int) -> None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)

    assert killed(lambda: compiled(tmp_path, "other"), wait) in (0, -signal.SIGKILL)
    assert compiled(tmp_path, "other") == whole
    assert compiled(tmp_path, "other") == whole, "taken from what is kept alone"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["engine", "mine.txt", "other"]
