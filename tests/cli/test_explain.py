"""`moec explain`: whatever has a name."""

from __future__ import annotations

import tomllib

import pytest
import torch

from moec import registry
from moec.cli.explain import OPERATORS, explain
from moec.errors import CODES
from moec.pipeline.pipeline import Pipeline
from tests.command_line import Cli


def test_a_pass_with_its_options(cli: Cli) -> None:
    data = cli.json("explain", "upcycle")
    assert data["contract"] == "exact" and data["options"]["experts"] == 8
    assert "top_k=2" in cli("explain", "upcycle")


def test_a_code(cli: Cli) -> None:
    assert cli.json("explain", "M101") == {"code": "M101", "meaning": CODES["M101"], "exit_code": 1}


def test_a_target_with_its_options(cli: Cli) -> None:
    target = cli.json("explain", "tensorrt")
    assert target["options"]["cache"] == "fixed|growing" and target["options"]["workspace"] == "MiB"
    assert "refit=no|yes" in cli("explain", "tensorrt-rtx") and "tf32=" in cli("explain", "onnxruntime")


def test_a_target_as_it_is_written(cli: Cli) -> None:
    for written in ("onnxruntime:cuda", "onnxruntime:cuda,precision=fp16"):
        assert cli.json("explain", written) == cli.json("explain", "onnxruntime")
    cli("explain", "tensorrt:sm90,refit", status=2)
    assert "refit" in cli.err


def test_a_preset(cli: Cli) -> None:
    assert 'name = "quantize"' in cli("explain", "int4")


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
    own = {str(name).removeprefix("moec::") for name in torch._C._dispatch_get_all_op_names() if name[:6] == "moec::"}
    assert set(OPERATORS) == {name for name in own if "backward" not in name}


@pytest.mark.parametrize(("name", "advice"), [("upcicle", "did you mean upcycle"), ("M998", "M"), ("zzz", "moec ls")])
def test_a_name_that_there_is_not(cli: Cli, name: str, advice: str) -> None:
    cli("explain", name, status=2)
    assert advice in cli.err
