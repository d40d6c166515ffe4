"""Options that take a list."""

from __future__ import annotations

import click
import pytest

from moec.cli.lists import numbers, words
from moec.errors import MoecError

NEEDED, OPTIONAL = click.Option(["--batch"], default="1"), click.Option(["--ranks"], default="")


def test_a_list_is_its_parts() -> None:
    context = click.Context(click.Command("plan"))
    assert words(context, NEEDED, " a, b,,") == ("a", "b") and words(context, NEEDED, "") == ()
    assert numbers(context, NEEDED, "1, 8") == (1, 8) and numbers(context, OPTIONAL, "") == ()
    for text in ("", "1,x", "-1", "1.5"):
        with pytest.raises(MoecError, match=r"M201[\s\S]*--batch"):
            numbers(context, NEEDED, text)
