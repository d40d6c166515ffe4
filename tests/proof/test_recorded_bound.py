"""A recorded bound is shown beside what was taken in its place."""

from __future__ import annotations

from moec.proof.recorded_bound import RecordedBound


def test_it_is_shown_beside_what_was_used() -> None:
    assert str(RecordedBound("tolerance", "50", "0.001")) == "tolerance 50 (0.001 by default)"
