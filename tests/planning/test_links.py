"""Disks, networks and buses."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.planning.formats import FORMATS, stored_bytes
from moec.planning.links import find_link, links, loadings
from tests.planning.shapes import mixture


@pytest.mark.parametrize(
    ("text", "rate"), [("nvme", 5), ("100GbE", 12.5), ("25Gb/s", 3.125), ("7GB/s", 7), ("500 MB/s", 0.5)]
)
def test_names_and_rates(text: str, rate: float) -> None:
    assert find_link(text).rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("text", "words"), [("nvm", "nvme"), ("fast", "7GB/s"), ("0GB/s", "travels"), ("-1GB/s", "7GB")]
)
def test_what_is_no_link(text: str, words: str) -> None:
    with pytest.raises(MoecError, match="M20") as refused:
        find_link(text)
    assert words in str(refused.value) and "--link" in str(refused.value)


def test_loading_takes_bytes_over_the_rate() -> None:
    shape, formats = mixture(), [FORMATS["bf16"], FORMATS["int4"]]
    rows = loadings(shape, formats, [links()["nvme"], links()["10gbe"]])
    assert [(r.format, r.link) for r in rows] == [(f, n) for f in ("bf16", "int4") for n in ("nvme", "10gbe")]
    whole = sum(stored_bytes(shape.tensors, FORMATS["bf16"]).values())
    assert rows[0].bytes == whole and rows[0].seconds == pytest.approx(whole / 5e9)
    assert rows[1].seconds == pytest.approx(4 * rows[0].seconds) and rows[2].seconds < 0.4 * rows[0].seconds
