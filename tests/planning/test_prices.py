"""What devices cost, as the user says."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.planning.prices import read_prices


def test_prices_are_by_the_devices_names() -> None:
    assert read_prices("H200=3.5, rtx-4090=0.4") == {"h200": 3.5, "rtx4090": 0.4} and read_prices("") == {}


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("h200", "M201", "h200=3.5"),
        ("h200=-1", "M201", "h200=3.5"),
        ("h200=nan", "M201", "h200"),
        ("h20=1", "M202", "h200"),
    ],
)
def test_what_is_no_price(text: str, code: str, words: str) -> None:
    with pytest.raises(MoecError, match=code) as refused:
        read_prices(text)
    assert words in str(refused.value)
