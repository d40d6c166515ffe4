"""The command line's options are the settings; what is given beats a file, also where it says the default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from moec.cli import main
from moec.cli.build import compile_command
from moec.cli.settings import given_settings, setting_options
from moec.compiler.options import SETTINGS, Options
from tests.compiler.test_options import OTHER


class Cli:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.err = capsys, ""

    def __call__(self, *arguments: object, status: int = 0) -> Any:
        """The report's settings when it went well; else the error is kept in `err`."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments), "--json"])
        out, self.err = self.capsys.readouterr()
        assert int(stop.value.code or 0) == status, self.err
        data = json.loads(out)
        return data["report"]["settings"] if status == 0 else data["error"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


# ---------------------------------------------------------------------- options
@click.command()
@setting_options()
@click.pass_context
def show(context: click.Context, /, **_: Any) -> dict[str, Any]:
    """What `moec compile` makes of its options."""
    return given_settings(context)


def given(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = show.main(list(arguments), standalone_mode=False)
    return found


def as_arguments(name: str, value: Any) -> list[str]:
    flag = SETTINGS[name].flag
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]


def test_every_setting_is_an_option() -> None:
    arguments = [word for name, value in OTHER.items() for word in as_arguments(name, value)]
    assert Options.of(given(*arguments)) == Options.of(OTHER)
    shown = " ".join(compile_command.get_help(click.Context(compile_command)).split())
    assert [s.name for s in SETTINGS.values() if s.flag not in shown or s.help not in shown] == []
    defaults = [s.shown for s in SETTINGS.values() if s.shown not in ("", "True")]
    assert [text for text in defaults if f"[default: {text}]" not in shown] == []


@pytest.mark.parametrize("name", [n for n, s in SETTINGS.items() if s.default is not None and s.default != ()])
def test_a_default_that_is_given_is_given(name: str) -> None:
    default = SETTINGS[name].default
    found = given(*as_arguments(name, default))
    assert list(found) == [name] and Options.of(found) == Options() and given() == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tolerance", "inf"),
        ("--tolerance", "nan"),
        ("--tolerance", "-1"),
        ("--seed", "-1"),
        ("--seed", str(2**63)),
        ("--seed", "x"),
        ("--window", "1"),
        ("--max-kl", "inf"),
        ("--max-perplexity-ratio", "1.1"),
        ("--verify", "never"),
        ("--target", "onnxruntime:a=1,a=2"),
    ],
    ids=" ".join,
)
def test_a_value_that_makes_no_sense_is_refused(arguments: tuple[str, str], cli: Cli, tmp_path: Path) -> None:
    error = cli("compile", "no-model-is-read", "-o", tmp_path / "engine", *arguments, status=2)
    assert error["code"] == "M201" and len(cli.err.splitlines()) == 3 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "target",
    ["onnxruntime:threads=two", "onnxruntime:threads=-1", "onnxruntime:threads=9999999999", "onnxruntime:accuracy=8"],
)
def test_a_targets_option_of_a_wrong_type_is_refused(target: str, cli: Cli, tmp_path: Path) -> None:
    error = cli("compile", "no-model-is-read", "-o", tmp_path / "engine", "--target", target, status=2)
    assert error["code"] == "M208" and target.partition(":")[2] in error["what"]


# ---------------------------------------------------------------------- files
PASSES = "upcycle(experts=2, top_k=1)"
MODEL = """
import torch
from torch import nn


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids):
        x = self.embedding(ids)
        return self.head(x + self.down(nn.functional.silu(self.gate(x)) * self.up(x)))
"""


@pytest.fixture
def model(tmp_path: Path) -> tuple[object, ...]:
    """A model that is small enough to be compiled often, as arguments of `moec compile`."""
    (tmp_path / "dense.py").write_text(MODEL)
    return (f"{tmp_path / 'dense.py'}:Dense", "--input", "ids=batch,sequence:int64<20")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'target = "onnxruntime:threads=1"\nverify = "streamed"\nseed = 5\ntolerance = 0.0123456\n'
        f'optimize_for = "throughput"\ncache = false\nlayout = "triton"\npass = "{PASSES}"\n'
    )
    return path


def test_the_command_line_beats_a_file_also_with_a_default(
    cli: Cli, model: tuple[object, ...], config: Path, tmp_path: Path
) -> None:
    arguments = ("--config", config, "--verify", "auto", "--target", "onnxruntime", "--seed", 0, "--layout", "plain")
    found = cli("compile", *model, "-o", tmp_path / "first", *arguments, "--cache")
    want = {"target": "onnxruntime", "verify": "full", "seed": 0, "layout": "plain", "cache": True}
    kept = {"pipeline": PASSES, "tolerance": 0.0123456, "optimize_for": "throughput", "inputs": [model[2]]}
    assert found == {**Options().to_plain(), **want, **kept}


def test_the_command_line_beats_a_manifest_and_the_rest_stays(
    cli: Cli, model: tuple[object, ...], config: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "first" / "moec.json"
    before = cli("compile", *model, "-o", manifest.parent, "--config", config)
    given = {"seed": 7, "pipeline": "upcycle(experts=4, top_k=1)", "target": "onnxruntime", "cache": True}
    arguments = [word for name, value in given.items() for word in as_arguments(name, value)]
    dump = tmp_path / "dump"
    after = cli(
        "compile", "--from", manifest, "--trust-remote-code", "-o", tmp_path / "second", *arguments, "--dump", dump
    )
    assert before["seed"] == 5 and after == {**before, **given}
    assert any("upcycle" in p.name for p in dump.iterdir())
    assert cli("compile", "--from", manifest, "--trust-remote-code", "-o", tmp_path / "third") == before


def test_what_cannot_be_combined_is_refused_by_name(
    cli: Cli, mixtral_engine: Path, config: Path, tmp_path: Path
) -> None:
    out = ("-o", tmp_path / "engine", "--from", mixtral_engine / "moec.json")
    for arguments, names in (
        (("model",), ("MODEL", "--from")),
        (("--config", config), ("--config", "--from")),
        (("--max-perplexity-ratio", 1.1), ("max_perplexity_ratio", "text")),
    ):
        error = cli("compile", *arguments, *out, status=2)
        assert error["code"] == "M201" and all(name in error["what"] for name in names)
    error = cli("compile", *out, "--target", "onnxruntime:threads=two", status=2)
    assert error["code"] == "M208" and not (tmp_path / "engine").exists()


def test_a_manifest_of_an_older_moec_is_refused(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "moec.json"
    older = {**json.loads((mixtral_engine / "moec.json").read_text()), "schema": 1, "target": "onnxruntime"}
    manifest.write_text(json.dumps(older))
    error = cli("compile", "--from", manifest, "-o", tmp_path / "engine", status=1)
    assert error["code"] == "M106" and "schema 1" in error["what"] and "compile the model again" in error["fix"]


@pytest.mark.parametrize("wrong", [{"window": "x"}, {"seed": -1}, {"colour": "red"}], ids=str)
def test_a_manifest_that_somebody_changed_is_refused(
    wrong: dict[str, Any], cli: Cli, mixtral_engine: Path, tmp_path: Path
) -> None:
    data = json.loads((mixtral_engine / "moec.json").read_text())
    (tmp_path / "moec.json").write_text(json.dumps({**data, "settings": {**data["settings"], **wrong}}))
    error = cli("compile", "--from", tmp_path / "moec.json", "-o", tmp_path / "engine", status=2)
    assert error["code"] == "M201" and next(iter(wrong)) in str(error)
