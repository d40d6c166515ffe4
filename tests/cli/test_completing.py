"""What is offered: names where they are known, files where they are not, and nothing that could not be taken."""

from __future__ import annotations

import dataclasses

import click
import pytest

from moec import registry
from moec.cli import VERBS, cli, completing
from moec.cli.completing import options_of_pass
from moec.compiler.options import SETTINGS
from moec.errors import CODES
from moec.planning.devices import devices
from moec.targets.backend import refuse
from moec.targets.target import Target


def offered(completer: completing.Completer, begun: str) -> list[str]:
    context = click.Context(click.Command("any"))
    found = completer(context, click.Option(["--any"]), begun)
    return [item.value if item.type == "plain" else f"<{item.type}>" for item in found]


@pytest.mark.parametrize(
    ("completer", "begun", "answer"),
    [
        ("target", "tensorrt", ["tensorrt", "tensorrt-rtx", "tensorrt:"]),
        ("target", "onnxruntime:c", ["onnxruntime:cpu", "onnxruntime:cuda"]),
        ("target", "onnxruntime:cuda,t", [f"onnxruntime:cuda,{o}=" for o in ("threads", "tf32", "tune")]),
        ("target", "onnxruntime:tf32=true,tf", []),
        ("target", "onnxruntime:threads=", []),
        ("target", "tensorrt-rtx:sm86,sm8", ["tensorrt-rtx:sm86,sm80", "tensorrt-rtx:sm86,sm89"]),
        ("target", "tensorrt:max", ["tensorrt:max_"]),
        ("target", "nothing:", []),
        ("passes", "qu", ["quantize"]),
        ("passes_or_all", "a", ["add-expert", "all"]),
        ("configs", "int8", ["int8", "<file>"]),
        ("kinds", "t", ["targets", "<dir>"]),
        ("names", "M20", [f"M20{n}" for n in range(1, 10)]),
        ("names", "onnxruntime:acc", ["onnxruntime:accuracy="]),
        ("plan_formats", "int8,in", ["int8,int4", "int8,int4-g128-zero", "int8,int2", "int8,int4-tensorrt"]),
        ("plan_devices", "h200,h1", ["h200,h100"]),
        ("plan_places", "r", ["ram"]),
        ("plan_prices", "h200", ["h200="]),
        ("plan_states", "", ["bf16", "fp8", "int8"]),
        ("keys", "cac", ["cache="]),
        ("keys", "cache=", ["cache=true", "cache=false"]),
        ("keys", "layout=g", ["layout=genai"]),
        ("keys", "find", []),
    ],
)
def test_what_is_offered(completer: str, begun: str, answer: list[str]) -> None:
    assert offered(getattr(completing, completer), begun) == answer


def test_everything_that_has_a_name_is_offered_to_explain() -> None:
    every = set(offered(completing.names, ""))
    assert {*registry.names("passes"), *registry.names("backends"), *CODES, "int4", "moec::moe"} <= every
    assert set(offered(completing.plan_devices, "")) == {"cpu", "cpu-int8", *devices()}
    keys = offered(completing.keys, "")
    assert {f"{s.key}=" for s in SETTINGS.values()} <= set(keys) and "quantize." in keys


@pytest.mark.parametrize("backend", registry.names("backends"))
def test_a_target_that_is_offered_is_taken(backend: str) -> None:
    """Devices, and every word of every option that any device has."""
    devices = offered(completing.target, f"{backend}:")
    options = [name for name in devices if name.endswith("=")]
    for text in [name for name in devices if not name.endswith(("=", "_"))]:
        refuse(registry.find("backends", backend)().options(Target.parse(text)))
    words = [word for option in options for word in offered(completing.target, option)]
    assert len(words) > 5
    for text in words:
        refused = registry.find("backends", backend)().options(Target.parse(text))
        assert not [r for r in refused if r.reason.startswith("no option")]


@pytest.mark.parametrize("name", registry.names("passes"))
def test_options_of_a_pass_are_read_off_its_file(name: str) -> None:
    fields = [field.name for field in dataclasses.fields(registry.find("passes", name))]
    assert list(options_of_pass(name)) == fields and options_of_pass("no-such-pass") == ()


def test_no_option_with_a_set_of_values_is_without_an_answer() -> None:
    """What takes one of known names, a file or a folder says so to the shell; the rest takes numbers and free texts."""
    free = {
        "--builder",
        "--leave-out",
        "--size",
        "--input",
        "prompt",
        "--tokens",
        "--price",
        "--traffic",
        "--batch",
        "--ranks",
        "--max-ram",
    }
    silent = set()
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        for parameter in command.params:
            plain = type(parameter.type) is type(click.STRING) and parameter._custom_shell_complete is None
            if plain and not getattr(parameter, "is_flag", False):
                silent.add(parameter.opts[-1] if parameter.param_type_name == "option" else parameter.name)
    assert silent <= free | {"--max-ram"}, silent - free
