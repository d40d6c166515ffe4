"""`KEY=VALUE`, with keys as TOML writes them."""

from __future__ import annotations

import tomllib

import pytest

from moec.cli.dotted import read_said, written
from moec.errors import MoecError


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("seed=3", ("seed",), "3"),
        (" quantize . bits = 8 ", ("quantize", "bits"), "8"),
        ("target=onnxruntime:cuda,tf32=true", ("target",), "onnxruntime:cuda,tf32=true"),
        ('a."b.c=d".e="f.g"', ("a", "b.c=d", "e"), '"f.g"'),
        (r'a."\u00e4\"".b=', ("a", 'ä"', "b"), ""),
        (r"a.'\u00e4'=1", ("a", r"\u00e4"), "1"),
        ('"seed"=3', ("seed",), "3"),
        ("a.*.b=1", ("a", "*", "b"), "1"),
    ],
)
def test_a_key_and_its_value(text: str, path: tuple[str, ...], value: str) -> None:
    (said,) = read_said([text])
    assert (said.path, said.value) == (path, value) and len(said.quoted) == len(path)


@pytest.mark.parametrize("text", ["seed", "=1", "a.=1", ".a=1", "a..b=1", 'a."b=1', "a.'b'c=1", r'a."\q"=1', ""])
def test_what_is_none(text: str) -> None:
    with pytest.raises(MoecError, match="is not KEY=VALUE"):
        read_said([text])


def test_quotes_make_no_other_key() -> None:
    with pytest.raises(MoecError, match="said twice"):
        read_said(["a.b=1", "a.'b'=2"])
    assert len(read_said(["a.b.c=1", "a.'b.c'=2"])) == 2


@pytest.mark.parametrize("path", [("a", "b-c", "1"), ("a", "*.experts.*"), ('"', "\\", "ä", "a\nb", ""), ("\u00b2",)])
def test_what_is_written_reads_back(path: tuple[str, ...]) -> None:
    (said,) = read_said([written(path) + "=1"])
    found = tomllib.loads(written(path) + "=1")
    for part in path:
        found = found[part]
    assert said.path == path and found == 1  # type: ignore[comparison-overlap]
