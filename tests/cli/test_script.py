"""`moec compile --gen-script` and `--print-after`: a command as Python, and the program between its passes."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest

import moec
import moec.api
from moec.cli.script import script
from moec.compiler.options import SETTINGS, Options
from moec.pipeline.hooks import DumpHook, PrintHook
from moec.pipeline.pipeline import Pipeline
from tests import zoo
from tests.command_line import Cli
from tests.compiler.test_options import OTHER

MODEL = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

def samples():
    return {"input": torch.randn(3, 5, 8)}
"""


def said_by(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments with which a script calls a function of `moec`, by name."""
    calls: list[dict[str, Any]] = []
    function = getattr(moec.api, name)

    def noted(*arguments: Any, **keywords: Any) -> moec.Report:
        calls.append(dict(inspect.signature(function).bind(*arguments, **keywords).arguments))
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(moec, name, noted, raising=False)
        patch.setattr(moec.api, name, noted)
        exec(compile(text, "script.py", "exec"), {})
    return calls[0]


def test_a_script_says_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    read = {name: SETTINGS[name].read(value) for name, value in OTHER.items()}
    text = script("a model/", read, Path("programs"), rebuild=False, out=Path("engine"), allow_pickle=True)
    given = said_by(text, "compile", monkeypatch)
    (hook,) = given.pop("hooks")
    assert isinstance(hook, DumpHook)
    assert [given.pop(n) for n in ("model", "out", "allow_pickle")] == ["a model/", "engine", True]
    assert Options.of(given) == Options.of(OTHER)


def test_a_script_says_only_what_was_given(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "script.py"
    assert "script.py" in cli("compile", "m", "-o", "e", "--config", "int8", "--seed", "3", "--gen-script", path)
    given = said_by(path.read_text(), "compile", monkeypatch)
    assert (
        set(given) == {"model", "out", "target", "pipeline", "seed"} and given["seed"] == 3 and not Path("e").exists()
    )
    cli("compile", "m", "-o", "e", "--gen-script", path, status=2)
    assert "M210" in cli.err


@pytest.mark.parametrize(
    ("asked", "prints"), [(["upcycle"], {"upcycle"}), (["all"], {"upcycle", "fuse-moe"}), ([], set())]
)
def test_a_script_prints_what_the_command_prints(
    asked: list[str], prints: set[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = [word for name in asked for word in ("--print-after", name)]
    cli("compile", "m", "-o", "e", *options, "--dump", "d", "--gen-script", tmp_path / "a.py")
    dump, *printing = said_by((tmp_path / "a.py").read_text(), "compile", monkeypatch)["hooks"]
    assert isinstance(dump, DumpHook) and all(isinstance(hook, PrintHook) for hook in printing)
    capsys.readouterr()
    for hook in printing:
        for name in ("upcycle", "fuse-moe"):
            hook.after(1, Pipeline.parse(name).passes[0], zoo.captured("mixtral"), 2, 0.1)
    out, err = capsys.readouterr()
    assert not out and {name for name in ("upcycle", "fuse-moe") if f"# after {name}" in err} == prints
    cli("compile", "m", "-o", "e", "--print-after", "upcycel", "--gen-script", tmp_path / "b.py", status=2)
    assert "did you mean upcycle" in cli.err and not (tmp_path / "b.py").exists()


def test_a_script_of_a_manifest(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "script.py"
    assert cli.json("compile", "--from", "e/moec.json", "-o", "f", "--gen-script", path) == {"script": str(path)}
    assert said_by(path.read_text(), "rebuild", monkeypatch) == {"manifest": "e/moec.json", "out": "f"}


def test_a_script_does_what_the_command_does(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    command = ["compile", f"{tmp_path}/model.py:network:samples", "--pass", "upcycle(experts=4, top_k=2)", "-o"]
    cli(*command, tmp_path / "a", "--gen-script", tmp_path / "script.py")
    assert not (tmp_path / "a").exists()
    runpy.run_path(str(tmp_path / "script.py"))
    assert cli.json(*command, tmp_path / "b", "--print-after", "upcycle")["ok"]
    assert cli.err.count("# after ") == cli.err.count("# after upcycle(experts=4): 1 rewrites\n") == 1
    assert "torch.ops.moec.experts" in cli.err
    assert cli("diff", tmp_path / "a", tmp_path / "b") == "equal\n"


def test_a_pass_that_there_is_not_is_not_waited_for(cli: Cli) -> None:
    cli("compile", "m", "-o", "e", "--print-after", "upcycel", status=2)
    assert "did you mean upcycle" in cli.err
