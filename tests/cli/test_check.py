"""`moec check`, as a hook before a commit and in a pipeline."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.command_line import Cli

HOOKS = yaml.safe_load((Path(__file__).parents[2] / ".pre-commit-hooks.yaml").read_text())


@pytest.fixture
def kept(mixtral: Path, mixtral_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a model, a configuration and the manifest of its engine."""
    monkeypatch.setenv("GITHUB_ACTIONS", "")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mixtral, "model")
    Path("moec.toml").write_text("seed = 0\n")
    manifest = json.loads((mixtral_engine / "moec.json").read_text())
    Path("moec.json").write_text(json.dumps({**manifest, "source": "model"}))
    return tmp_path


def hook(cli: Cli, *arguments: object, status: int) -> str:
    """Run the hook as pre-commit does: its entry, then the user's arguments."""
    (entry,) = HOOKS
    assert entry["always_run"] and not entry["pass_filenames"]  # a changed model touches no manifest
    program, *words = shlex.split(entry["entry"])
    assert program == "moec"
    return cli(*words, *arguments, status=status)


def test_the_hook_fails_when_model_pipeline_or_budget_changed(cli: Cli, kept: Path) -> None:
    given = ("moec.json", "--config", "moec.toml")
    assert hook(cli, *given, status=0) == "moec.json  as it was\n"
    (kept / "moec.toml").write_text('max_kl = 0.05\npass = ["quantize(bits=4)"]\n')
    said = hook(cli, *given, status=1)
    assert said.count("error[M112]") == 2 and "max_kl is 0.05 now" in said and "pipeline is 'quantize" in said
    (kept / "moec.toml").write_text("seed = 0\n")
    (kept / "model" / "config.json").write_text("{}")
    assert "the source has changed since: config.json" in hook(cli, *given, status=1)


def test_annotations_and_cases(cli: Cli, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept / "moec.toml").write_text("seed = 3\n")
    given = ("check", "moec.json", "--config", "moec.toml")
    assert "::error" not in cli(*given, status=1)
    line = "::error file=moec.json,title=moec M112::seed is 3 now; the engine was compiled with 0%0A"
    assert line in cli(*given, "--annotate", "--junit", "checks.xml", status=1)
    (suite,) = ElementTree.parse(kept / "checks.xml").getroot()
    assert [case.attrib["name"] for case in suite if len(case.findall("failure"))] == ["setting seed"]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert [e["code"] for e in cli.json(*given, status=1)["manifests"]["moec.json"]] == ["M112"] and line in cli.err
    assert "::error" not in cli(*given, "--no-annotate", status=1)


def test_a_manifest_that_cannot_be_read_ends_nothing(cli: Cli, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept / "moec.toml").write_text("seed = 3\n")
    given = ("check", "nowhere", "moec.json", "--config", "moec.toml", "--junit", "checks.xml")
    assert "error[M112]" in cli(*given, status=2) and "error[M201]" in cli.err
    suites = {suite.attrib["name"]: suite for suite in ElementTree.parse(kept / "checks.xml").getroot()}
    assert list(suites) == ["nowhere", "moec.json"] and all(int(s.attrib["failures"]) == 1 for s in suites.values())
    assert [e["code"] for each in cli.json(*given, status=2)["manifests"].values() for e in each] == ["M112", "M201"]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (kept / "moec.toml").write_text("sead = 3\n")  # ends the verb before anything is compared
    for word, count in (("--annotate", 1), ("--no-annotate", 0)):
        said = cli(*given, word, status=2) + cli.err
        assert said.count("::error") == count and said.count("error[M") == 1


@pytest.mark.parametrize("place", ["model", "nowhere", "moec.toml"])
def test_what_is_no_engine_is_a_mistake_of_the_command(place: str, cli: Cli, kept: Path) -> None:
    cli("check", place, status=1 if place == "moec.toml" else 2)
    assert "error[M" in cli.err
