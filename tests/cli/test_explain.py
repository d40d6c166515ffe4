"""`moec explain`: whatever has a name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from moec import registry
from moec.cli.causes import CAUSES
from moec.cli.config import presets, read_config
from moec.cli.explain import divided, explain
from moec.cli.overrides import overridden
from moec.errors import CODES
from moec.pipeline.pipeline import Pipeline
from tests.cli.shown_passes import example
from tests.command_line import Cli


def test_a_pass_with_its_options(cli: Cli) -> None:
    data = cli.json("explain", "upcycle")
    assert data["contract"] == "exact" and data["options"]["experts"]["default"] == 8
    text = " ".join(cli("explain", "upcycle").split())
    assert "top_k: int [default: 2] experts a token T, a multiple of G." in text and "Attributes" not in text


@pytest.mark.parametrize("name", registry.names("passes"))
def test_every_option_of_every_pass_is_explained(name: str) -> None:
    data, text = explain(name)
    assert [key for key, option in data["options"].items() if not option["meaning"]] == []
    assert all(f"  {key}: {option['type']}  [default: " in text for key, option in data["options"].items())


@pytest.mark.parametrize("name", registry.names("passes"))
def test_no_two_options_of_a_pass_are_explained_in_the_same_words(name: str) -> None:
    meanings = [option["meaning"] for option in explain(name)[0]["options"].values()]
    assert len(set(meanings)) == len(meanings)


@pytest.mark.parametrize("name", [*registry.names("passes"), *registry.names("backends")])
def test_no_explanation_begins_with_where_to_read_it(name: str) -> None:
    first = explain(name)[0]["doc"].split("\n\n")[0]
    assert first.endswith(".") and "moec explain" not in first


def test_a_docstring_is_divided_into_what_it_says_and_its_attributes() -> None:
    doc = "Do it.\n\nMore of it.\n\nAttributes:\n    a, b: numbers of it,\n        e.g. `x: 3`.\n    c: the rest."
    assert divided(doc) == (
        "Do it.\n\nMore of it.",
        {"a": (ab := "numbers of it, e.g. `x: 3`."), "b": ab, "c": "the rest."},
    )
    assert divided("Do it.") == ("Do it.", {})


@pytest.mark.parametrize("name", registry.names("passes"))
def test_the_example_of_a_pass_is_what_it_does(name: str) -> None:
    """Where this fails after a change of a pass: `python -m tests.cli.shown_passes` writes the examples again."""
    data, text = explain(name)
    assert data["example"] == example(name)
    changed = data["example"].splitlines()[2:]
    assert changed and all(line in text for line in changed)
    assert name == "calibrate-router" or {line[0] for line in changed} == {"+", "-"}


def test_a_code(cli: Cli) -> None:
    data = cli.json("explain", "M101")
    assert (data["meaning"], data["exit_code"], data["fix"]) == (CODES["M101"], 1, CAUSES["M101"].fix)
    assert cli("explain", "m101") == cli("explain", "M101")


@pytest.mark.parametrize("name", registry.names("backends"))
def test_a_target_with_its_options(cli: Cli, name: str) -> None:
    data, text = cli.json("explain", name), cli("explain", name)
    for key, option in registry.find("backends", name).declared.items():
        assert data["options"][key] == {"takes": str(option), "default": option.default, "meaning": option.meaning}
        assert f"  {key}={option}  [default: {option.default}]" in text
        assert option.meaning in " ".join(text.split())
    assert data["devices"] and f"{name}[:{'|'.join(data['devices'])}]" in text


def test_a_target_as_it_is_written(cli: Cli) -> None:
    for written in ("onnxruntime:cuda", "onnxruntime:cuda,precision=fp16"):
        assert cli.json("explain", written) == cli.json("explain", "onnxruntime")
    cli("explain", "tensorrt:sm90,refit", status=2)
    assert "refit" in cli.err


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_its_options_mean(name: str) -> None:
    data, text = explain(name)
    assert "[[pass]]" in text and f"--config {name} --set " in text
    for each, said in data["passes"].items():
        for key, option in said.items():
            assert option["meaning"] and f"{each}.{key} = {option['value']!r}  [default: {option['default']!r}]" in text
    assert overridden(read_config(Path(name)), [re.findall(r"--set (\S+)=…", text)[-1] + "=2"])


def test_every_pass_as_it_stands_in_a_file(cli: Cli) -> None:
    for name in registry.names("passes"):
        text = explain(name)[1]
        table = tomllib.loads(text[text.index("[[pass]]") :])["pass"][0]
        assert str(Pipeline.of([table])).startswith(name)
    assert "experts = 8" in cli("explain", "upcycle")


def test_an_operator(cli: Cli) -> None:
    text = cli("explain", "moec::moe")
    assert "router_weight" in text and "`[E, H]`" in text and "top_groups" in text
    assert cli.json("explain", "route")["operator"] == "moec::route"


@pytest.mark.parametrize(("name", "advice"), [("upcicle", "did you mean upcycle"), ("M998", "M"), ("zzz", "moec ls")])
def test_a_name_that_there_is_not(cli: Cli, name: str, advice: str) -> None:
    cli("explain", name, status=2)
    assert advice in cli.err
