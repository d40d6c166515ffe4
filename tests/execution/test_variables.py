"""Variables are as before afterwards, errors included."""

from __future__ import annotations

import os

import pytest

from moec.execution.variables import with_variables


def test_all_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEC_ONE", "old")
    monkeypatch.delenv("MOEC_TWO", raising=False)
    with pytest.raises(ValueError, match="within"), with_variables({"MOEC_ONE": "new", "MOEC_TWO": ""}):
        assert os.environ["MOEC_ONE"] == "new" and os.environ["MOEC_TWO"] == ""
        raise ValueError("within")
    assert os.environ["MOEC_ONE"] == "old" and "MOEC_TWO" not in os.environ
