"""Every error code has a way out and an example, and the commands among the examples bring what they say."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moec.cli.causes import CAUSES
from moec.errors import CODES, EXIT_CODES
from tests.command_line import Cli
from tests.zoo import edit_config

# commands that take a trained model, or longer than they are worth; test_bad_input.py runs M103 and M105
UNTRIED = {"M101", "M103", "M105", "M107", "M108", "M111"}
COMMANDS = {code: cause.example for code, cause in CAUSES.items() if cause.example.startswith("moec ")}
SENTENCES = {code for code, cause in CAUSES.items() if cause.example.endswith(".")}
MODULE = """
from torch import nn


class Network(nn.Module):
    def forward(self, x):
        {line}
        return x + 1


def network():
    return Network()
"""


def _spoil(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _add(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "tower.weight": torch.ones(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})


def _change(folder: Path) -> None:
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx.data").write_bytes(data)


def _remote(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"}, model_type="own")


def _odd(folder: Path) -> None:
    edit_config(folder, model_type="mixtrel", architectures=["MixtrelForCausalLM"])


# what lies where: a copy of a folder, changed
CHANGED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nan": ("mixtral", _spoil),
    "bare": ("mixtral", lambda folder: (folder / "model.safetensors").unlink()),
    "extra": ("mixtral", _add),
    "odd": ("mixtral", _odd),
    "remote": ("mixtral", _remote),
    "broken": ("engine", _change),
}


@pytest.fixture
def place(
    mixtral: Path, llama: Path, mixtral_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """The folder in which the examples are run; called with a command, it holds what that names."""
    monkeypatch.chdir(tmp_path)
    folders = {"mixtral": mixtral, "llama": llama, "engine": mixtral_engine}

    def prepare(command: str) -> None:
        for name, folder in folders.items():
            (tmp_path / name).symlink_to(folder)
        for name, (origin, change) in CHANGED.items():
            if f"{name}/" in command:
                change(Path(shutil.copytree(folders[origin], tmp_path / name)))
        (tmp_path / "branch.py").write_text(MODULE.format(line="x = x * 2 if x.sum() > 0 else x"))
        (tmp_path / "leaves.py").write_text(MODULE.format(line="raise SystemExit(3)"))
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "one.tex").touch()
        np.savez(tmp_path / "other.npz", nothing=np.ones(3))

    return prepare


def test_every_code_has_a_way_out_and_an_example(cli: Cli) -> None:
    assert list(CAUSES) == list(CODES) and set(COMMANDS) | SENTENCES == set(CODES)
    for code in CODES:
        said = cli("explain", code)
        fix, example = CAUSES[code]
        assert CODES[code] in said and fix in said and example in said and f"status {EXIT_CODES[code[:2]]}" in said
        assert fix[:1].isupper() and fix.endswith("."), code
    assert set(UNTRIED) <= set(COMMANDS) and len(set(COMMANDS) - SENTENCES - UNTRIED) >= 17


@pytest.mark.parametrize("code", sorted(set(COMMANDS) - SENTENCES - UNTRIED))
def test_the_example_brings_the_code(code: str, cli: Cli, place: Callable[[str], None]) -> None:
    command = COMMANDS[code].partition("  # ")[0]
    place(command)
    out = cli(*shlex.split(command)[1:], status=EXIT_CODES[code[:2]])
    last = [line for line in (out + cli.err).splitlines() if line.startswith("error[")]
    assert last and last[-1].startswith(f"error[{code}]"), cli.err
