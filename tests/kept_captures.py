"""Captures that are kept: by tests of what comes after one, and counted by tests of the keeping."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parent
# what a capture makes is what is tested there, or all of moec from the model on
CAPTURE_ANEW = ("frontend/", "huggingface/", "recognition/", "backends/test_conformance.py")
BEHIND_CAPTURES = ("huggingface/saving/", "huggingface/gguf/")


def may_take_kept(item: pytest.Item) -> bool:
    """Whether a test may begin with a capture that another one made. One that has patched code may not: what it
    captures is not what others do."""
    path = item.path.relative_to(TESTS).as_posix()
    if path.startswith(CAPTURE_ANEW) and not path.startswith(BEHIND_CAPTURES):
        return False
    patch = getattr(item, "funcargs", {}).get("monkeypatch")
    return patch is None or not (patch._setattr or patch._setitem)


class KeptCaptures:
    """A folder of captures for the tests of a run that may take them. Nothing else is kept there: quantized weights are
    computed in each test. Where a test names a weight cache of its own, it has that one."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.item: pytest.Item | None = None

    def before(self, item: pytest.Item) -> None:
        """To be called before the fixtures of a test are made."""
        self.item = item
        source: Any = sys.modules.get("moec.huggingface.source")  # whose import takes seconds, and most tests need none
        if source is not None and getattr(source.captured, "__name__", "") == "captured":
            from tests.recalled import Captured

            source.captured = Captured(self, source.captured)


def count_captures(owner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each capture that a module really makes from now on."""
    real, found = owner.capture, list[str]()
    monkeypatch.setattr(owner, "capture", lambda *a, **k: (found.append("one"), real(*a, **k))[1])
    return found
