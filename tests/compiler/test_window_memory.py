"""Windows of a text run together as far as memory reaches, and one that does not fit is refused."""

from __future__ import annotations

import pytest

from moec.compiler import window_memory
from moec.compiler.window_memory import windows_at_once
from moec.errors import MoecError
from moec.execution.memory import limited
from tests import zoo

MIB = 2**20


def test_fewer_run_together_and_what_does_not_fit_is_refused_with_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_memory, "available_bytes", lambda: 1 << 40)  # a suite holds what it holds
    program = zoo.captured("mixtral")  # 4 heads: 64 bytes for a pair of tokens
    assert windows_at_once(program, 32, 4) == 4
    with limited(256 * MIB):
        assert windows_at_once(program, 512, 4) == 4
        assert windows_at_once(program, 1024, 4) == 2
        with pytest.raises(MoecError, match="1,000,000 tokens") as caught:
            windows_at_once(program, 1_000_000, 4)
        assert caught.value.code == "M201" and caught.value.where == "--window 1000000"
        enough = int(caught.value.fix.split()[-1])
        assert 1024 < enough < 2048 and windows_at_once(program, enough, 4) == 1
