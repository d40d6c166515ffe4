"""How templates print."""

from __future__ import annotations

import jinja2
import pytest

from moec.report.rendering import environment


def test_texts_are_escaped_and_cannot_steer_and_what_is_missing_is_an_error() -> None:
    page = environment().from_string("{{ text }} {{ 2048 | bytes }}")
    assert page.render(text="<b>\x1b[31m") == r"&lt;b&gt;\x1b[31m 2.00 KiB"
    with pytest.raises(jinja2.UndefinedError):
        page.render()
