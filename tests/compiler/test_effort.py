"""Disk and memory of a compilation, foreseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec.compiler.effort import seconds_of
from moec.compiler.foresee import foresee
from moec.compiler.memory_limit import full_bytes
from moec.compiler.open import open_source
from moec.compiler.rehearsals import Rehearsals
from tests import zoo
from tests.huggingface import packed


@pytest.mark.repeats
def test_what_is_foreseen_is_what_it_takes(tmp_path: Path) -> None:
    folder = zoo.save("llama", tmp_path / "model", vocab_size=4096, hidden_size=64, intermediate_size=128)
    passes = "quantize(bits=8, group=32)"
    said = foresee(f"{folder}/config.json", passes)[0].effort
    assert said is not None
    moec.compile(folder, out=tmp_path / "engine", pipeline=passes, max_ram=said.least_ram_bytes + 2**28)
    found = sum(file.stat().st_size for file in (tmp_path / "engine").glob("model.onnx.data"))
    assert 0.95 * said.disk_bytes < found < 1.05 * said.disk_bytes
    assert said.full_ram_bytes > said.least_ram_bytes > 10 * said.disk_bytes  # libraries are most of it


def test_every_layer_is_counted_and_what_is_packed_takes_less(tmp_path: Path) -> None:
    folder = zoo.save("llama", tmp_path / "model", num_hidden_layers=4)
    paper = Rehearsals(f"{folder}/config.json")
    plain, packed = (foresee(paper, passes)[0].effort for passes in ("", "quantize(bits=8, group=16)"))
    assert plain is not None and plain.disk_bytes == 4 * paper.shape.total  # four layers, one of them captured
    assert packed is not None and packed.disk_bytes < 0.4 * plain.disk_bytes
    assert plain.full_ram_bytes > plain.least_ram_bytes + 7 * plain.disk_bytes
    assert 10 < packed.seconds[0] < plain.seconds[0] < 30 < packed.seconds[1] < plain.seconds[1]


def test_what_was_measured_lies_in_the_time_that_is_foreseen() -> None:
    """Of two layers of Mixtral with their proof, of parts of DeepSeek-V3 without; all take over a tenth of the most."""
    big = {row["case"].partition(": ")[2]: row["value"] for row in _results("big_model.json")["rows"][:7]}
    taken = [(big["checkpoint"], big["engine"], big["time"])]
    for run in _results("huge_model.json")["runs"]:
        written = sum(file["bytes"] for file in run["files"].values())
        taken.append((run["checkpoint_bytes"], written, sum(stage["wall_s"] for stage in run["stages"].values())))
    assert len(taken) > 4
    for read, written, seconds in taken:
        low, high = seconds_of(read, written)
        assert low < seconds < high < 10 * seconds


def _results(name: str) -> Any:
    return json.loads((Path(moec.__file__).parents[1] / "benchmarks/results" / name).read_text())


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "4 bits"])
def test_with_what_is_said_the_untouched_model_is_run(tmp_path: Path, stored: str) -> None:
    """By that figure the limit decides, whatever the checkpoint is stored in; what is packed there counts as plain."""
    folder, weights = str(tmp_path / "model"), 4 * sum(p.numel() for p in zoo.build("llama").parameters())
    if stored == "4 bits":
        packed.write(zoo.save("llama", tmp_path / "plain"), "quantize(bits=4, group=16, lm_head=16)", Path(folder))
    else:
        zoo.build("llama").to(getattr(torch, stored)).save_pretrained(folder)  # type: ignore[operator]
    said, source = foresee(f"{folder}/config.json")[0].effort, open_source(folder)
    assert said is not None and abs(source.loaded_bytes / weights - (2 if stored == "4 bits" else 1)) < 0.02
    found, real = said.full_ram_bytes - said.least_ram_bytes, full_bytes(0, source, weights)
    assert abs(found - real) < 0.02 * real


def test_a_refusal_takes_nothing(tmp_path: Path) -> None:
    folder = zoo.save("llama", tmp_path / "model")
    assert foresee(f"{folder}/config.json", "quantize(format=nvfp4)")[0].effort is None
