"""Which workers a text asks for."""

from __future__ import annotations

import pytest

from moec.workers.place import Place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("local:1", Place(1)),
        ("local:64", Place(64)),
        (" local:2 ", Place(2)),
        ("ray://head.example:10001", Place(address="ray://head.example:10001")),
        ("ray://10.0.0.1:80", Place(address="ray://10.0.0.1:80")),
        ("ray://[::1]:10001", Place(address="ray://[::1]:10001")),
    ],
)
def test_a_text_is_read_and_given_back(text: str, place: Place) -> None:
    assert Place.parse(text) == place and str(place) == text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "five", "local", "local:", "local:0", "local:-1", "local:1.5", "local:²", "ray:/x", "ray://", "ray://host",
     "ray://host:0", "ray://host:65536", "ray://host:1/x", "ray://a b:1", "local:2 ray://host:1", "auto"],
)  # fmt: skip
def test_what_names_no_workers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no workers"):
        Place.parse(text)
