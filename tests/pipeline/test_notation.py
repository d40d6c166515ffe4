"""What is written of a pipeline reads back as the same, whatever its passes hold; what is no pipeline is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import tomllib
from typing import Any

import pytest

from moec import registry
from moec.errors import MoecError
from moec.passes.quantize import Quantize
from moec.passes.upcycle import Upcycle
from moec.pipeline.notation import check_options, make_pass, parse_calls, read_value
from moec.pipeline.passes import Pass
from moec.pipeline.pipeline import Pipeline
from tests.many import failing, none


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fuse-moe",
        "upcycle(experts=8, top_k=2)",
        "upcycle(experts=8, top_k=2), find-moe, fuse-moe",
        "upcycle(experts=2, top_k=1, layers='*.1.*')",
    ],
)
def test_text_round_trip(text: str) -> None:
    try:
        pipeline = Pipeline.parse(text)
    except MoecError as error:
        pytest.fail(str(error))
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert len(pipeline.passes) == (text.count("upcycle") + text.count("moe"))


def test_default_options_are_not_printed_and_underscores_are_dashes() -> None:
    assert str(Pipeline.parse("find_moe,fuse_moe( )")) == "find-moe, fuse-moe"


def test_words_need_no_quotes() -> None:
    pipeline = Pipeline.parse("quantize(method=hqq)")
    assert pipeline == Pipeline.parse("quantize(method='hqq')") and str(pipeline) == "quantize(method='hqq')"
    assert Pipeline.parse("carve(router=mean-row)") == Pipeline.parse("carve(router='mean-row')")
    for text in ("carve(router=mean-1)", "carve(router=mean+row)", "carve(experts=mean-row)"):
        with pytest.raises(MoecError, match="M201"):
            Pipeline.parse(text)


def test_switches_are_words_as_in_toml_and_a_value_may_be_read_alone() -> None:
    assert str(Pipeline.parse("quantize(symmetric=false)")) == "quantize(symmetric=False)"
    values = {"8": 8, "0.5": 0.5, "true": True, "hqq": "hqq", "mean-row": "mean-row", "[1, 2]": [1, 2]}
    values |= {"{'a': 4}": {"a": 4}, "a/b c": "a/b c", "8), find-moe(": "8), find-moe(", "": "", "x=3": "x=3"}
    assert {text: read_value(text) for text in values} == values


def test_a_value_alone_is_the_first_option() -> None:
    assert Pipeline.parse("upcycle(2, top_k=1)") == Pipeline.parse("upcycle(experts=2, top_k=1)")
    assert Pipeline.parse("set-top-k(4), upcycle(2)") == Pipeline.parse("set-top-k(top_k=4), upcycle(experts=2)")
    for text in ("upcycle(2, 1)", "upcycle(2, experts=1)", "fuse-moe(1)"):
        with pytest.raises(MoecError, match="M201"):
            Pipeline.parse(text)


def test_toml_says_the_same_as_text() -> None:
    data = tomllib.loads('[[pass]]\nname = "upcycle"\nexperts = 8\ntop_k = 2\n[[pass]]\nname = "fuse-moe"\n')
    assert Pipeline.of(data["pass"]) == Pipeline.parse("upcycle(experts=8, top_k=2), fuse-moe")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("fuse-mo", "M202"),
        ("fuse-moe(fast=True)", "M201"),
        ("upcycle(8, 2)", "M201"),
        ("upcycle(experts=eight)", "M201"),
        ("upcycle(experts=8", "M201"),
        ("a.b()", "M201"),
        ("3", "M201"),
        ("upcycle(**{'experts': 8})", "M201"),
        ("fuse-moe; find-moe", "M201"),
        ("fuse-moe], [find-moe", "M201"),
        ("upcycle(experts=2, experts=4)", "M201"),
        ("upcycle(experts=" + "(" * 5000, "M201"),
    ],
)
def test_what_is_no_pipeline_is_refused(text: str, code: str) -> None:
    with pytest.raises(MoecError) as caught:
        Pipeline.parse(text)
    assert caught.value.code == code


# ---------------------------------------------------------------------- every value
CHARACTERS = "ax ,()[]{}'\"\\-=#*.\n\t\0é漢\ud800"
NUMBERS = (0, -1, 7, 2**70, 0.1, -1e-300, 1e300, math.inf, -math.inf, -0.0)


def some_text(draw: random.Random) -> str:
    return "".join(draw.choices(CHARACTERS, k=draw.randrange(8)))


def some_value(draw: random.Random, depth: int, nothing: bool = True) -> Any:
    """Any plain value; without `nothing` one that TOML can say, which has no None and only texts as keys."""
    kind = draw.randrange(6 if depth else 4)
    if kind == 0:
        return some_text(draw)
    if kind == 1:
        return draw.choice([True, False, *([None] if nothing else [])])
    if kind in (2, 3):
        return draw.choice([n for n in NUMBERS if nothing or abs(n) < 2**63 or isinstance(n, float)])
    if kind == 4:
        return tuple(some_value(draw, depth - 1, nothing) for _ in range(draw.randrange(3)))
    keys = [some_value(draw, 0) if nothing else some_text(draw) for _ in range(draw.randrange(3))]
    return {key: some_value(draw, depth - 1, nothing) for key in keys}


def some_pipeline(draw: random.Random, nothing: bool = True) -> Pipeline:
    """Passes that hold anything: what their fields declare is checked where a user's text is read."""
    rules = {some_text(draw): {some_text(draw): some_value(draw, 2, nothing)} for _ in range(draw.randrange(4))}
    quantize = Quantize(
        bits=draw.choice([4, 8]),
        method=some_text(draw),
        rules=rules or ({} if not nothing else None),
        budget_bits=draw.choice([n for n in NUMBERS if isinstance(n, float)]),
        widths=tuple(draw.choices([2, 4, 8], k=draw.randrange(4))),
        symmetric=draw.choice([True, False]),
    )
    layers = draw.choice([some_text(draw), (1,), (0, -3)])
    upcycle = Upcycle(draw.randrange(2, 9), layers=layers, reinit=draw.choice([0, 0.5, math.inf]))
    passes = [quantize, upcycle, make_pass("fuse-moe", {}), make_pass("find-moe", {})]
    return Pipeline(tuple(draw.sample(passes, k=draw.randrange(1, 5))))


def text_reads_back(seed: int) -> None:
    pipeline = some_pipeline(random.Random(seed))
    again = Pipeline.parse(str(pipeline))
    assert again == pipeline and str(again) == str(pipeline)
    assert [types(p) for p in again] == [types(p) for p in pipeline]


def test_text_reads_back_whatever_passes_hold() -> None:
    none(failing(text_reads_back, range(300)))


def types(value: Any) -> Any:
    """The types of everything that a pass holds: 1 equals True and 1.0, and is not the same."""
    if isinstance(value, Pass):
        return [types(getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        return {k: types(v) for k, v in value.items()}
    return [types(v) for v in value] if isinstance(value, tuple) else type(value)


def toml_reads_back(seed: int) -> None:
    pipeline = some_pipeline(random.Random(seed), nothing=False)
    assert Pipeline.of(pipeline.to_plain()) == pipeline
    tables = "".join(f"[[pass]]\n{''.join(lines(table))}" for table in pipeline.to_plain())
    assert Pipeline.of(tomllib.loads(tables)["pass"]) == pipeline


def test_toml_reads_back_whatever_it_can_say() -> None:
    none(failing(toml_reads_back, range(300)))


def lines(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {toml(value)}\n" for key, value in table.items() if value is not None]


def toml(value: Any) -> str:
    """A value in TOML, whose strings are JSON's but for characters that stand for no character."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return repr(value).replace("e", "E") if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("value", [math.nan, object(), {1, 2}, b"x", 1j], ids=lambda v: type(v).__name__)
def test_what_has_no_notation_is_refused_by_name(value: Any) -> None:
    with pytest.raises(MoecError, match="rules cannot be written down") as caught:
        check_options(Quantize(rules={"x": (value,)}))
    assert caught.value.code == "M201" and str(Quantize(rules={"x": value})).startswith("quantize(rules=")


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        ("upcycle(experts='2')", "experts is int"),
        ("upcycle(experts=True)", "experts is int"),
        ("upcycle(experts=2.0)", "experts is int"),
        ("upcycle(reinit='x')", "reinit is float"),
        ("quantize(bits=None)", "bits is int"),
        ("quantize(rules={'x': 8.5})", "rules is Mapping"),
        ("quantize(rules={8: 8})", "rules is Mapping"),
        ("quantize(widths=2)", "widths is Sequence[int]"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(text: str, declared: str) -> None:
    (item,) = Pipeline.parse(text)
    with pytest.raises(MoecError, match="is not a value") as caught:
        check_options(item)
    assert caught.value.code == "M201" and declared in caught.value.fix
    check_options(Quantize(rules={"x(": 8, "y": {"bits": None}}, widths=(2, 8), budget_bits=3))


def test_every_pass_has_its_defaults_back() -> None:
    for name in registry.names("passes"):
        assert str(make_pass(name, {})) == name and Pipeline.parse(name).passes == (make_pass(name, {}),)


@pytest.mark.parametrize("table", [{}, {"name": 3}, "fuse-moe", {"bits": 4}], ids=str)
def test_a_table_without_a_name_is_refused(table: Any) -> None:
    with pytest.raises(MoecError, match="names no pass") as caught:
        Pipeline.of([table])
    assert caught.value.code == "M201"


def test_paths_in_a_list_need_no_quotes() -> None:
    found = parse_calls("merge(sources=[code/, ../law/x-1, 'a,/b', med], top_k=2), carve(experts=4)")
    assert found[0] == ("merge", {"sources": ["code/", "../law/x-1", "a,/b", "med"], "top_k": 2})
    assert found[1] == ("carve", {"experts": 4})
    with pytest.raises(MoecError):
        parse_calls("merge(sources=code/)")
