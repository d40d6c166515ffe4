"""A refusal says what was tried, and no more."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.huggingface.ways_out import refused_with, without_cache

ERROR = MoecError("M207", "it branches", "line 3", "write it without")


def fail() -> None:
    raise MoecError("M206", "it is odd", "line 4", "change it")


def test_no_cache_is_offered_only_where_it_was_captured() -> None:
    assert "--no-cache" in without_cache(ERROR, lambda: None).fix
    other = without_cache(ERROR, fail)
    assert (other.code, other.where, other.fix) == ("M207", "line 4", "change it") and "it is odd" in other.what


def test_the_better_refusal_is_raised_with_the_first_as_its_cause() -> None:
    better = MoecError("M207", "better", "here", "so")
    with pytest.raises(MoecError) as caught, refused_with(lambda error: better):
        raise ERROR
    assert caught.value is better and caught.value.__cause__ is ERROR
    for same in (lambda error: None, lambda error: error):
        with pytest.raises(MoecError) as caught, refused_with(same):
            raise ERROR
        assert caught.value is ERROR
