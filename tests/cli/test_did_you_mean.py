"""Whoever mistypes a name, of whatever kind, is told the right one, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Cli

MODEL = """
from torch import nn


class Net(nn.Module):
    def forward(self, tokens):
        return tokens + 1


def network():
    return Net()
"""
OUT = ("-o", "new")
WRONG = {
    "verb": (("compiel",), "compile"),
    "flag": (("compile", "mixtral", "--taget", "onnxruntime"), "--target"),
    "choice": (("compile", "mixtral", *OUT, "--layout", "gena"), "genai"),
    "subcommand": (("cache", "pruen"), "prune"),
    "shell": (("completion", "fsh"), "fish"),
    "model": (("compile", "mixtrel/", *OUT), "mixtral/"),
    "model of a plan": (("plan", "Mixtral"), "mixtral/"),
    "python file": (("compile", "modle.py:network", *OUT), "model.py"),
    "callable": (("compile", "model.py:netwrk", *OUT), "network"),
    "input": (("compile", "model.py:network", "--input", "token=batch:float32", *OUT), "tokens"),
    "pt2": (("compile", "progam.pt2", *OUT), "program.pt2"),
    "gguf": (("compile", "modle.gguf", *OUT), "model.gguf"),
    "engine": (("verify", "engne"), "engine/"),
    "folder of engines": (("ls", "engne"), "engine/"),
    "list": (("ls", "target"), "targets"),
    "text": (("compile", "mixtral", "--text", "prse.txt", *OUT), "prose.txt"),
    "arrays": (("run", "engine", "--inputs", "inptus.npz"), "inputs.npz"),
    "left out": (("compile", "mixtral", "--leave-out", "positions_id", *OUT), "position_ids"),
    "preset": (("compile", "mixtral", "--config", "int9", *OUT), "int8"),
    "file of settings": (("compile", "mixtral", "--config", "mein.toml", *OUT), "mine.toml"),
    "key of a file": (("compile", "mixtral", "--config", "mine.toml", *OUT), "seed"),
    "preset to copy": (("cp", "balancd", "."), "balanced"),
    "key": (("compile", "mixtral", "--set", "sede=3", *OUT), "seed"),
    "pass": (("compile", "mixtral", "--pass", "quantise", *OUT), "quantize"),
    "pass to print": (("compile", "mixtral", "--print-after", "find-moes", *OUT), "find-moe"),
    "option of a pass": (("compile", "mixtral", "--pass", "quantize(bit=4)", *OUT), "bits"),
    "word of a pass": (("compile", "mixtral", "--pass", "quantize(method=hqqq)", *OUT), "hqq"),
    "format": (("compile", "mixtral", "--pass", "quantize(format=nvfp)", *OUT), "nvfp4"),
    "kind": (("compile", "mixtral", "--pass", "quantize(recipe={'expert': 4})", *OUT), "experts"),
    "rule": (("compile", "mixtral", "--pass", "quantize(rules={'*': {'bit': 4}})", *OUT), "bits"),
    "score": (("compile", "mixtral", "--pass", "prune-experts(score=reep)", *OUT), "reap"),
    "partition": (("compile", "llama", "--pass", "carve(partition=rowz)", "--calibration", "prose.txt", *OUT), "rows"),
    "target": (("compile", "mixtral", "-t", "onnxruntme", *OUT), "onnxruntime"),
    "device of a target": (("compile", "mixtral", "-t", "onnxruntime:cdua", *OUT), "cuda"),
    "option of a target": (("compile", "mixtral", "-t", "onnxruntime:precison=fp16", *OUT), "precision=fp32|fp16"),
    "word of a target": (("compile", "mixtral", "-t", "onnxruntime:accuracy=int88", *OUT), "int8"),
    "name": (("explain", "upcicle"), "upcycle"),
    "code": (("explain", "M2O3"), "M203"),
    "device": (("plan", "mixtral", "--device", "h20"), "h200"),
    "format of a plan": (("plan", "mixtral", "--format", "blanced"), "balanced"),
    "state": (("plan", "mixtral", "--state", "bf61"), "bf16"),
    "link": (("plan", "mixtral", "--device", "h200", "--link", "nvmee"), "nvme"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_name_is_answered_with_the_right_one(
    kind: str,
    cli: Cli,
    mixtral: Path,
    llama: Path,
    mixtral_engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in {"mixtral": mixtral, "llama": llama, "engine": mixtral_engine}.items():
        (tmp_path / name).symlink_to(folder)
    for name in ("program.pt2", "model.gguf", "prose.txt", "inputs.npz"):
        (tmp_path / name).touch()
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "mine.toml").write_text("sed = 3\n")
    arguments, right = WRONG[kind]
    cli(*arguments, status=2)
    fix = cli.err.splitlines()[-1].removeprefix("  fix:   did you mean ")
    assert right in fix.replace("?", " ").split(), cli.err
    assert not (tmp_path / "new").exists()
