"""Signals end the command line with nothing half left behind, and a terminal as it was."""

from __future__ import annotations

import signal

import pytest

from moec.cli.interruption import Interruption


def test_a_swallowed_interruption_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = Interruption()
    before = signal.getsignal(signal.SIGINT)
    found.install()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            found.check()
        found.check()
        assert found.seen and found.report() == 130 and "interrupted" in capsys.readouterr().err
    finally:
        found.remove()
    assert signal.getsignal(signal.SIGINT) is before
