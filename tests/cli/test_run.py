"""`moec run` of decoders: text on stdout, figures on stderr; and what it answers to wrong prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moec.cli import main
from tests.byte_tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def engine(mixtral_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(Path(shutil.copytree(mixtral_engine, tmp_path_factory.mktemp("run") / "engine")))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    """The verb in this process: exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["run", *map(str, arguments)])
        return int(stop.value.code or 0), *capfd.readouterr()

    return call


def test_text_and_its_speed(run: Any, engine: Path) -> None:
    status, out, err = run(engine, "def quick(", "--max-tokens", 20, "--json")
    data = json.loads(out)
    assert (
        status == 0
        and err == ""
        and len(data["tokens"]) <= 20
        and data["prompt_tokens"][0] == 71
        and data["timings"]["first_token_ms"] > 0
    )
    status, out, err = run(engine, "def quick(", "--max-tokens", 20)
    assert (
        status == 0 and out == data["text"] + "\n" and f"10 + {len(data['tokens'])} tokens" in err and "decode" in err
    )
    assert run(engine, "def quick(", "--max-tokens", 20, "--quiet") == (0, out, "")
    assert run(engine, "def slow(", "--max-tokens", 20)[1] != out


def test_tokens_instead_of_text(run: Any, engine: Path, mixtral_engine: Path) -> None:
    tokens = json.loads(run(engine, "--tokens", "71,72,73", "--json")[1])["tokens"]
    status, out, _ = run(mixtral_engine, "--tokens", "71,72,73")
    assert status == 0 and out.split() == [str(t) for t in tokens]


def test_drawing(run: Any, engine: Path) -> None:
    drawn = [
        run(engine, "def", "--temperature", 1.5, "--top-k", 50, "--top-p", 0.95, "--seed", seed)[1]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_tokenizer_of_the_source_serves_too(run: Any, mixtral_engine: Path, engine: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    manifest = json.loads((moved / "moec.json").read_text())
    (moved / "moec.json").write_text(json.dumps({**manifest, "source": str(write_tokenizer(tmp_path / "source"))}))
    assert run(moved, "def quick(")[1] == run(engine, "def quick(")[1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["x" * 256], "M211"),
        ([""], "M211"),
        (["--tokens", "5,96"], "M214"),
        (["--tokens", "5;6"], "M201"),
        (["text", "--tokens", "5,6"], "M201"),
        (["text", "--output", "out.npz"], "M201"),
        (["text", "--max-tokens", "0"], "M201"),
        (["text", "--temperature", "-1"], "M201"),
        (["text", "--top-k", "3"], "M201"),
        (["text", "--max-tokens", "many"], "M201"),
    ],
)
def test_wrong_prompts(run: Any, engine: Path, arguments: list[str], code: str) -> None:
    status, out, err = run(engine, *arguments)
    assert status == 2 and out == "" and len(err.splitlines()) == 3 and err.startswith(f"error[{code}]: ")


def test_text_without_a_tokenizer(run: Any, mixtral_engine: Path) -> None:
    status, _, err = run(mixtral_engine, "def quick(")
    assert status == 2 and err.startswith("error[M204]: ") and "--tokens 1,2,3" in err and len(err.splitlines()) == 3
