"""What tests of captures that are kept share."""

from __future__ import annotations

from types import ModuleType

import pytest


def count_captures(owner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each capture that a module really makes from now on."""
    real, found = owner.capture, list[str]()
    monkeypatch.setattr(owner, "capture", lambda *a, **k: (found.append("one"), real(*a, **k))[1])
    return found
