"""Of many cases in one test each that fails is named."""

from __future__ import annotations

import pytest

from tests.many import failing, none


def below_two(case: int) -> None:
    assert case < 2
    if case == 0:
        with pytest.raises(ValueError):
            int("1")


def test_each_that_fails_is_named() -> None:
    found = failing(below_two, range(4))
    assert [line.split(":")[0] for line in found] == ["0", "2", "3"] and "DID NOT RAISE" in found[0]
    none(failing(below_two, [1]))
    with pytest.raises(AssertionError, match=r"0: .*\n2: .*\n3: "):
        none(found)
