"""A carved model is saved with the code of its networks beside it; transformers, where it is trusted, and moec compute
the same with it, or it is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import moec
from moec import open_source
from moec.errors import MoecError
from moec.huggingface.saving.carved import CODE, read_carved
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from tests import zoo

TOLERANCE = 2e-5  # of the logits' standard deviation
SIZES = {"batch": 3, "sequence": 11}  # capture and calibration use others
CARVE = "carve(experts=4, shared=1, active=2)"


@cache
def source(name: str) -> HuggingFaceSource:
    return zoo.source(name, cache=False)


def context() -> Context:
    ids = torch.randint(0, zoo.VOCAB, (1024,), generator=torch.Generator().manual_seed(0))
    return Context(calibration=Calibration(CalibrationText("text", 0, 32), "", ids))


@cache
def carved(name: str, how: str = CARVE) -> Program:
    return Pipeline.parse(how).run(zoo.captured(name, cache=False), context())[0]


def by_transformers(folder: Path, name: str) -> Tensor:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        return model(**source(name).sample(SIZES)).logits  # type: ignore[no-any-return]


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.std())


SAVED = [
    ("llama", CARVE),
    ("gpt2", f"{CARVE}, set-top-k(1), fuse-moe"),  # plain experts with biases, a scale
    pytest.param("gemma2", "carve(experts=4, active=0.625)", marks=pytest.mark.repeats),  # a number for each layer
]


@pytest.mark.parametrize(("name", "how"), SAVED)
def test_transformers_says_the_same(name: str, how: str, tmp_path: Path) -> None:
    program = carved(name, how)
    assert save_hf(program, tmp_path / "out", source(name)) == f"carved_{name}"
    said = by_transformers(tmp_path / "out", name)
    assert apart(said, program.run(**source(name).sample(SIZES))["logits"]) < TOLERANCE
    untouched = source(name).reference().run(source(name).sample(SIZES))["logits"]
    assert apart(said, untouched) > 50 * TOLERANCE  # the bound tells them apart


def test_another_constant_is_seen(tmp_path: Path) -> None:
    """The bound is no wider than what one vector of one layer does."""
    wrong = carved("llama").clone()
    constant = "model.layers.1.mlp.experts.constant"
    wrong.weights[constant] = moec.weights.lazy.scale(wrong.weights[constant], 1.01)  # type: ignore[attr-defined]
    save_hf(wrong, tmp_path / "out", source("llama"))
    wanted = carved("llama").run(**source("llama").sample(SIZES))["logits"]
    assert apart(by_transformers(tmp_path / "out", "llama"), wanted) > TOLERANCE


def test_sixteen_bits_keep_the_router(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_hf(carved("llama"), tmp_path / "out", source("llama"), dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    state = model.state_dict()
    assert state["model.layers.0.mlp.experts.down_proj"].dtype == torch.bfloat16
    kept = carved("llama").weights["model.layers.0.mlp.router.weight"].load()
    assert torch.equal(state["model.layers.0.mlp.router.weight"], kept)


@pytest.mark.slow
def test_its_code_runs_only_when_it_is_trusted_and_in_a_process_without_moec(tmp_path: Path) -> None:
    save_hf(carved("llama"), tmp_path / "out", source("llama"))
    with pytest.raises(MoecError) as caught:
        open_source(str(tmp_path / "out"))
    assert caught.value.code == "M209" and "--trust-remote-code" in caught.value.fix
    script = f"""import sys, torch
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("it was loaded without trust")
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
torch.save(model(torch.arange(3, 20)[None]).logits.detach(), {str(tmp_path / "logits.pt")!r})
assert not [name for name in sys.modules if name == "moec"]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    ids = torch.arange(3, 20)[None]
    wanted = carved("llama").run(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
    assert apart(torch.load(tmp_path / "logits.pt"), wanted) < TOLERANCE


@pytest.mark.slow
def test_moec_compiles_the_folder_again(tmp_path: Path) -> None:
    """Its experts are one mixture of moec's, and the engine is proven to equal the folder's own code."""
    save_hf(carved("llama"), tmp_path / "out", source("llama"))
    report = moec.compile(tmp_path / "out", out=tmp_path / "engine", trust_remote_code=True, cache=False)
    assert report.ok and "8/8 experts reached" in report.headline()
    engine = moec.load(tmp_path / "engine")
    sample = source("llama").sample(SIZES)
    assert apart(engine.run(sample)["logits"], carved("llama").run(**sample)["logits"]) < TOLERANCE


def test_the_folder_says_what_was_cut(tmp_path: Path) -> None:
    save_hf(carved("llama"), tmp_path / "out", source("llama"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    form = {"experts": 4, "hidden": 32, "width": 12, "top_k": 2, "activation": "silu", "gated": True}
    assert config["carved"] == {f"model.layers.{i}.mlp": form for i in (0, 1)}
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_carved.CarvedForCausalLM"
    compile((tmp_path / "out" / CODE).read_text(), CODE, "exec")


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("bert", CARVE, "holds more than its feed-forward network"),
        ("deepseek_v3", CARVE, "have parts, chosen by routers of their own"),
        ("llama", f"{CARVE}, quantize(bits=16, lm_head=8, group=16)", "quantize changed it as well"),
    ],
)
def test_what_has_no_place_is_refused_in_three_lines(name: str, how: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        save_hf(carved(name, how), tmp_path / "out", source(name))
    assert caught.value.code == "M206" and words in caught.value.what and str(caught.value).count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_a_module_that_adds_its_input_is_no_network_alone() -> None:
    """It would be replaced as a whole, and what it adds would be lost."""
    program = carved("llama").clone()
    node = next(n for n in program.graph.nodes if n.name == "add_tensor")
    with program.graph.inserting_after(node):
        more = program.graph.call_function(torch.ops.aten.add.Tensor, (node, node))
        more.meta = dict(node.meta)
    with pytest.raises(MoecError, match="holds more than"):
        read_carved(program)
