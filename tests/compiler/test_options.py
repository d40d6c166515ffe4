"""Options is the one place where a setting is declared: `moec.compile` and the manifest say the same."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import moec
from moec import api
from moec.compiler.options import EXAM, SETTINGS, Options, read_settings
from moec.compiler.setting import Choice
from moec.errors import MoecError
from moec.huggingface.saving.save import FORMATS
from moec.layouts import LAYOUTS
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.pipeline import Pipeline
from moec.proof.exam import Exam
from moec.targets.target import Target

# a value of each setting that is not the default, as plain data
OTHER: dict[str, Any] = {
    "target": "onnxruntime:cpu,threads=2",
    "pipeline": "upcycle(experts=2, top_k=1, layers='a(,')",
    "optimize_for": "throughput",
    "verify": "streamed",
    "tolerance": 0.123456789,
    "seed": 2**63 - 1,
    "layout": "triton",
    "build": False,
    "save_hf": "checkpoint",
    "hf_format": "gptq",
    "save_gguf": "model.gguf",
    "gguf_floats": "f32",
    "calibration": "more.txt",
    "calibration_tokens": 0,
    "text": "prose.txt",
    "tokens": 512,
    "window": 64,
    "max_kl": 0.0123456789,
    "max_perplexity_ratio": 1.5,
    "inputs": ["ids=batch,sequence:int64<9"],
    "cache": False,
    "leave_out": ["pixel_values*"],
    "part": "decoder",
    "resume": False,
    "max_ram": "16GiB",
    "workers": "local:2",
}
# what no manifest keeps: a place on one machine, and how the work is done there
UNRECORDED = {"save_hf", "hf_format", "save_gguf", "gguf_floats", "resume", "max_ram", "workers"}
# keywords of `moec.compile` that are no settings
OTHERS = {"model", "out", "dynamic", "trust_remote_code", "allow_pickle", "require_run", "hooks", "progress"}


def test_the_keywords_of_compile_are_the_settings_with_their_defaults() -> None:
    parameters = inspect.signature(moec.compile).parameters
    assert set(parameters) - OTHERS == set(SETTINGS) == set(OTHER)
    assert Options.of({name: parameters[name].default for name in SETTINGS}) == Options()


@pytest.mark.parametrize("name", SETTINGS)
def test_compile_and_rebuild_pass_every_setting_on(name: str, mixtral_engine: Path, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {name: [3]}
    for run in (
        lambda: moec.compile("no-model-is-read", out=tmp_path / "engine", **wrong),
        lambda: api.rebuild(mixtral_engine / "moec.json", tmp_path / "engine", **wrong),
    ):
        with pytest.raises(MoecError) as caught:
            run()
        assert caught.value.code in ("M201", "M202")
        assert name in caught.value.what or "names no pass" in caught.value.what


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_help_and_differs_from_its_default(name: str) -> None:
    assert SETTINGS[name].help.endswith(".")
    needs = {"calibration": "t", "text": "t"} if name.startswith(("calibration", *EXAM)) else {}
    assert Options.of({**needs, name: OTHER[name]}) != Options.of({k: v for k, v in needs.items() if k != name})


def test_a_manifest_says_every_setting_and_reads_back() -> None:
    options = Options.of(OTHER)
    plain = json.loads(json.dumps(options.to_plain(), allow_nan=False))
    assert set(SETTINGS) - set(plain) == UNRECORDED
    assert plain == {**{k: v for k, v in OTHER.items() if k not in UNRECORDED}, "target": "onnxruntime:cpu,threads=2"}
    assert Options.of(plain) == replace(options, **{name: getattr(Options(), name) for name in UNRECORDED})
    assert Options.of(Options().to_plain()) == Options()


def test_values_are_objects() -> None:
    options = Options.of(OTHER)
    assert options.target == Target("onnxruntime", "cpu", {"threads": "2"}) and options.save_hf == Path("checkpoint")
    assert options.pipeline == Pipeline.parse(OTHER["pipeline"]) and options.inputs == tuple(OTHER["inputs"])
    assert options.exam == Exam("prose.txt", 512, 64, 0.0123456789, 1.5)
    assert options.calibration_text == CalibrationText("more.txt", 0)
    assert Options().exam is None and Options().calibration_text is None


def test_defaults_that_depend_on_a_text_are_recorded_with_it() -> None:
    options = Options(text="t", calibration="c")
    assert (options.tokens, options.window, options.calibration_tokens) == (16384, 256, 16384)
    assert (Options().tokens, Options().window, Options().calibration_tokens) == (None, None, None)


@pytest.mark.parametrize(
    "given",
    [
        {"tolerance": math.inf},
        {"tolerance": math.nan},
        {"tolerance": -0.1},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": "x"},
        {"seed": True},
        {"verify": "sometimes"},
        {"optimize_for": "size"},
        {"cache": 1},
        {"text": "t", "window": 1},
        {"text": "t", "max_kl": math.inf},
        {"max_kl": -0.1},
        {"max_perplexity_ratio": 1.1},
        {"tokens": 16384},
        {"calibration_tokens": 16384},
        {"target": "onnxruntime:threads=1,threads=2"},
        {"pipeline": "upcycle("},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(MoecError) as caught:
        Options(**given)
    assert caught.value.code == "M201"
    with pytest.raises(MoecError) as caught:
        moec.compile("no-model-is-read", out="nothing", **given)
    assert caught.value.code == "M201"


@pytest.mark.parametrize("given", [{"tolerance": math.inf}, {"tolerance": math.nan}, {"seed": -1}, {"seed": 2**63}])
def test_a_later_proof_takes_no_other_values(given: dict[str, Any], mixtral_engine: Path) -> None:
    with pytest.raises(MoecError) as caught:
        moec.verify(mixtral_engine, **given)
    assert caught.value.code == "M201"


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(MoecError, match="no setting 'tolerence'") as caught:
        read_settings({"tolerence": 1}, "moec.json")
    assert (caught.value.code, caught.value.where) == ("M201", "moec.json")
    assert caught.value.fix.startswith("did you mean tolerance")
    with pytest.raises(MoecError) as caught:
        read_settings({"seed": "x"}, "moec.json")
    assert caught.value.where == "moec.json: seed"


def test_layouts_are_those_that_there_are() -> None:
    kind = SETTINGS["layout"].kind
    assert isinstance(kind, Choice) and kind.names == LAYOUTS


def test_forms_of_a_checkpoint_are_those_that_are_written() -> None:
    kind = SETTINGS["hf_format"].kind
    assert isinstance(kind, Choice) and kind.names == FORMATS and SETTINGS["hf_format"].default == FORMATS[0]
