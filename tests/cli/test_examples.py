"""The examples of `--help` are commands that moec takes; a name that is nearly right is answered with the right one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from moec.cli import VERBS, cli
from moec.cli.examples import EXAMPLES, STATUS, epilogue
from tests.command_line import Cli as CommandLine


def parse(command: str) -> click.Context:
    """A command as click reads it: options exist, and values are of their types."""
    verb, *arguments = shlex.split(command)[1:]
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found.make_context(verb, arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples_that_parse(verb: str, cli: CommandLine) -> None:
    inner = [re.sub(r"^eval \"\$\((.*)\)\"$", r"\1", text).split(" | ")[0] for text in EXAMPLES[verb]]
    commands = [text for text in inner if text.startswith("moec ")]
    assert len(commands) == len(EXAMPLES[verb]) >= 2
    for command in commands:
        assert shlex.split(command)[1] == verb
        parse(command)
    text = cli(verb, "--help")
    assert "Examples:" in text and "Exit status: 0 ok" in text
    assert all(command in text for command in EXAMPLES[verb]) and max(map(len, text.splitlines())) <= 120


def test_what_an_exit_status_means_is_said_in_the_same_words_everywhere(cli: CommandLine) -> None:
    for command in (["--help"], ["ls", "--help"], []):
        assert STATUS in " ".join(cli(*command).split()), command


def test_the_page_names_every_verb() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compile.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `moec (\S+)` \|", page, re.M)) == set(VERBS)


def test_a_wrong_example_is_seen() -> None:
    for command in ("moec compile model/ --fast -o e/", "moec run engine/ --max-tokens many", "moec explain"):
        with pytest.raises(click.UsageError):
            parse(command)
    assert "Examples" not in epilogue("nothing")


def test_who_names_no_model_is_told_a_command_that_works(
    cli: CommandLine, mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("compile", status=2)
    assert "no MODEL was given" in cli.err and "mixtral/ is the folder of a model" in cli.err
    Path("an engine").mkdir()
    for name in ("config.json", "moec.json"):
        Path("an engine", name).write_text("{}")
    Path("my model").symlink_to(mixtral)  # the only model that lies here
    assert "parameters" in cli(*_advised(cli, "inspect"))
    cli(*_advised(cli, "compile"), "--gen-script", "script.py")
    cli(*_advised(cli, "compile", "my model/"), "--gen-script", "again.py")
    assert Path("again.py").read_text() == Path("script.py").read_text()


def _advised(cli: CommandLine, *incomplete: str) -> list[str]:
    """The command that the answer to an incomplete one advises, without `moec`."""
    cli(*incomplete, status=2)
    found = re.search(r"  fix:   write (for example )?moec (.*?)(;|$)", cli.err, re.M)
    assert found is not None and len(cli.err.splitlines()) == 3
    return shlex.split(found[2])


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("complie", "compile"),
        ("compile model/ --tragte onnxruntime", "--target"),
        ("verify engine/ --bisct", "--bisect"),
        ("compile model/ -o e/ --layout gena", "genai"),
        ("compile model/ -o e/ --optimize-for latncy", "latency"),
        ("compile model/ -o e/ --target onnxrutime", "onnxruntime"),
        ("compile model/ -o e/ --target onnxruntime:threds=2", "threads=N"),
        ("compile model/ -o e/ --target onnxruntime:acuracy=int8", "accuracy=exact|int8"),
        ("compile model/ -o e/ --pass qantize", "quantize"),
        ("compile model/ -o e/ --pass quantize(bit=4)", "bits"),
        ("compile model/ -o e/ --config itn4", "int4"),
        ("compile model/ -o e/ --config mine.toml", "max_kl"),
        ("explain fuse-mo", "fuse-moe"),
        ("ls pases", "passes"),
        ("completion bsh", "bash"),
    ],
)
def test_a_name_that_is_nearly_right(
    cli: CommandLine, command: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("max_lk = 0.1\n")
    cli(*command.split(), status=2)
    assert len(cli.err.splitlines()) == 3 and "did you mean" in cli.err and meant in cli.err.splitlines()[2]
