"""Each engine, where it is installed, writes the text of moec's own engine from each form that it reads; from a spoiled
file it writes another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Cli
from tests.serving.engines import SERVING, Refused, Serving
from tests.serving.forms import FORMS, PROMPT, TOKENS, Form, spoil, text_of

pytestmark = [pytest.mark.serving, pytest.mark.slow]
PAIRS = [pytest.param(e, f, id=f"{e.name}: {f.title}") for f in FORMS for e in SERVING if f.is_for(e)]


@pytest.mark.parametrize(("engine", "form"), PAIRS)
def test_it_writes_the_same_text(engine: Serving, form: Form, tmp_path: Path, cli: Cli) -> None:
    if engine.installed() is None:
        pytest.skip(f"{engine.name} is not installed: {engine.install}")
    ours, theirs = form.write(cli, tmp_path)
    text = text_of(cli, ours)
    assert len(text) > 20
    if engine.name in dict(form.refused):
        with pytest.raises(Refused, match=dict(form.refused)[engine.name]):
            engine.write(theirs, PROMPT, TOKENS)
        return
    assert engine.write(theirs, PROMPT, TOKENS) == text
    if form.kind != "engine":
        spoil(theirs)
        assert engine.write(theirs, PROMPT, TOKENS) != text
