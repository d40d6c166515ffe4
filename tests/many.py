"""Many small cases in one test: pytest takes longer for each of its own than such a case does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import pytest

Case = TypeVar("Case")


def none(found: Sequence[str]) -> None:
    """Fails where anything was found, and prints all of it: of two lists pytest shows the first difference."""
    assert not found, "\n".join(found)


def failing(check: Callable[[Case], object], cases: Iterable[Case]) -> list[str]:
    """Every case for which a check fails, or is skipped, and how; that there is `none` is for the test to say. There
    has to be a case."""
    found, cases = [], list(cases)
    assert cases, "no case was found"
    for case in cases:
        try:
            check(case)
        except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
            found.append(f"{case}: {type(error).__name__}: {error}")
    return found
