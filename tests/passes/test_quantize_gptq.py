"""`quantize(method=gptq)`: end to end, which weights it is used on, what the report says of the text, and what is
refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moec
from moec.errors import MoecError
from moec.frontend.stored_program import load_program, save_program
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline, StepReport
from moec.program.program import Program
from tests import zoo


@cache
def program(name: str) -> Program:
    """A tiny random model whose embeddings lie in three directions, so that activations go together as those of trained
    models do."""
    model: Any = zoo.build(name)
    table = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        table.copy_(
            0.3
            * torch.randn(table.shape[0], 3, generator=generator)
            @ torch.randn(3, table.shape[1], generator=generator)
            + 0.1 * table
        )
    return HuggingFaceSource.from_model(model).capture()


def ids(tokens: int = 1200, seed: int = 0) -> Tensor:
    """A text with an order to it: each token is near the last one."""
    steps = torch.randint(-2, 3, (tokens,), generator=torch.Generator().manual_seed(seed))
    return 3 + steps.cumsum(0) % 90


def quantized(name: str, options: str, tokens: int = 1200, seed: int = 0) -> tuple[Program, StepReport, Context]:
    context = Context(seed, calibration=Calibration(CalibrationText("text", tokens, 24), "5ha", ids(), seed=seed))
    found, (step,) = Pipeline.parse(f"quantize({options})").run(program(name), context)
    return found, step, context


def error(name: str, found: Program) -> float:
    """The median token's ‖difference‖/‖logits‖ on text that was not calibrated on."""
    sample: dict[str, Any] = {
        "input_ids": ids(seed=7)[:240].reshape(10, 24),
        "attention_mask": torch.ones(10, 24, dtype=torch.int64),
    }
    y, want = found.run(**sample)["logits"], program(name).run(**sample)["logits"]
    return float(((y - want).norm(dim=-1) / want.norm(dim=-1)).median())


@pytest.mark.parametrize("options", ["bits=4, group=16, lm_head=16", "bits=16, group=16, experts=2, symmetric=False"])
def test_it_is_closer_than_rounding(options: str) -> None:
    fitted, rounded = (error("mixtral", quantized("mixtral", f"{options}, method={m}")[0]) for m in ("gptq", "rtn"))
    assert fitted < 0.85 * rounded  # measured 0.66 and 0.71


def test_it_ends_as_an_engine(mixtral: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", ids(3000).numpy())
    text = {
        "calibration": tmp_path / "ids.npy",
        "calibration_tokens": 512,
        "tolerance": 5.0,
    }  # a random model's router is on the brink
    report = moec.compile(
        mixtral, out=tmp_path / "engine", pipeline="quantize(bits=8, group=16, method=gptq, floor=64)", **text
    )  # type: ignore[arg-type]
    facts = report.steps[0]["facts"]
    assert (
        facts["kinds"]["experts"]["grids"] == ["8 bit, group 16, symmetric, gptq"]
        and len(facts["calibration"]["blocks"]) == 2
    )
    assert report.settings["calibration_tokens"] == 512 and len(report.text_hashes["calibration"]) == 64


def test_stored_results_are_the_same(tmp_path: Path) -> None:
    found, _, _ = quantized("mixtral", "bits=4, group=16, method=gptq")
    save_program(found, tmp_path)
    assert error("mixtral", load_program(tmp_path)) == pytest.approx(error("mixtral", found), rel=1e-3)


def test_a_seed_decides_and_nothing_else() -> None:
    texts = [quantized("mixtral", "bits=4, group=16, method=gptq, floor=0", 480, seed)[0] for seed in (0, 0, 1)]
    assert texts[0].text() == texts[1].text() != texts[2].text()
    name = next(n for n in texts[0].weights if n.endswith("down_proj_packed"))
    first, same, other = (t.weights[name].load() for t in texts)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_tables_are_not_fitted_to_data() -> None:
    _, tied, _ = quantized("llama", "bits=4, group=16, method=gptq")
    assert tied.facts["kinds"]["embeddings"]["grids"] == ["8 bit, group 16, symmetric, hqq"]
    _, apart, _ = quantized("llama", "bits=4, group=16, method=gptq, embeddings=16")
    assert apart.facts["kinds"]["lm_head"]["grids"] == ["8 bit, group 16, symmetric, gptq"]
    _, own, _ = quantized("mixtral", "bits=4, group=16, embeddings=8, method=gptq")
    assert own.facts["kinds"]["embeddings"]["grids"] == ["8 bit, group 16, symmetric, hqq"]


def test_rules_may_ask_for_it_alone() -> None:
    found, step, _ = quantized("mixtral", "bits=8, group=16, rules={'*.1.*': {'bits': 4, 'method': 'gptq'}}")
    assert step.facts["kinds"]["experts"]["grids"] == [
        "4 bit, group 16, symmetric, gptq",
        "8 bit, group 16, symmetric, rtn",
    ]
    assert "5ha" in found.weights["model.layers.1.self_attn.q_proj.weight_packed"].origin
    assert "5ha" not in found.weights["model.layers.0.self_attn.q_proj.weight_packed"].origin


@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss", "llama4", "deepseek_v3"])
def test_other_models(name: str) -> None:
    found, step, _ = quantized(name, "bits=4, group=16, experts=16, method=gptq", 240)
    assert step.facts["kinds"]["attention"]["quantized"] > 0 and error(name, found) < 0.6


def test_the_report_says_how_many_tokens_reached_the_experts() -> None:
    _, step, context = quantized("mixtral", "bits=4, group=16, method=gptq, floor=400", 96)
    facts = step.facts["calibration"]
    assert facts["tokens"] == 384 and facts["floor"] == 400 and facts["rounded"] == []  # four times what was allowed
    assert [sum(b["tokens"]) for b in facts["blocks"]] == [768, 768] and all(
        b["least"] <= b["median"] for b in facts["blocks"]
    )
    assert len(step.misses) == 2 and "fewer than 400 tokens" in step.misses[0]["reason"]
    assert context.unquantized is not None and not context.unquantized.nodes(torch.ops.moec.dequantize)
    _, enough, _ = quantized("mixtral", "bits=4, group=16, method=gptq, floor=0", 96)
    assert enough.facts["calibration"]["tokens"] == 96 and not enough.misses


def test_experts_that_no_token_reaches_are_fitted_to_all_and_named() -> None:
    text = Calibration(CalibrationText("text", 0, 24), "5ha", torch.full((240,), 7))
    context = Context(calibration=text)
    found, (step,) = Pipeline.parse("quantize(bits=16, experts=4, group=16, method=gptq, floor=1)").run(
        program("mixtral"), context
    )
    unreached = [
        [e for e, count in enumerate(block["tokens"]) if not count] for block in step.facts["calibration"]["blocks"]
    ]
    assert all(unreached) and len(step.misses) == len(unreached)
    assert all(
        m["reason"].endswith(f"reached experts {', '.join(map(str, e))}")
        for m, e in zip(step.misses, unreached, strict=True)
    )
    rounded, _ = Pipeline.parse("quantize(bits=16, experts=4, group=16)").run(program("mixtral"))
    assert torch.isfinite(
        found.run(input_ids=ids()[None, :24], attention_mask=torch.ones(1, 24, dtype=torch.int64))["logits"]
    ).all()
    for name in (
        n for n in rounded.weights if n.endswith("gate_up_proj_scale")
    ):  # a scale is a weight's own, whoever fitted it
        fitted, plain = found.weights[name].load(), rounded.weights[name].load()
        assert ((fitted / plain) < 1.5).all() and not torch.equal(fitted, plain)


def test_what_it_was_before_is_kept_once() -> None:
    context = Context()
    Pipeline.parse("quantize(bits=8, group=16, experts=16), quantize(experts=4, group=16, bits=16)").run(
        program("mixtral"), context
    )
    assert context.unquantized is not None and context.unquantized.text() == program("mixtral").text()


# ---------------------------------------------------------------------- refusals
def test_without_a_text_nothing_is_done(mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.compiler.compile.check_finite", lambda _: pytest.fail("the weights were read already"))
    for pipeline in ("quantize(method=gptq, group=16)", "quantize(group=16, rules={'*': {'method': 'gptq'}})"):
        with pytest.raises(MoecError, match="needs a text to calibrate on") as caught:
            moec.compile(mixtral, out=tmp_path / "engine", pipeline=pipeline)
        assert caught.value.code == "M203"
    with pytest.raises(MoecError, match="needs a text") as caught:
        Pipeline.parse("quantize(method=gptq, group=16)").run(program("mixtral"))
    assert caught.value.code == "M203"


@pytest.mark.parametrize("tokens", [0, 5])
def test_a_text_that_is_too_short(mixtral: Path, tmp_path: Path, tokens: int) -> None:
    np.save(tmp_path / "ids.npy", np.arange(tokens))
    with pytest.raises(MoecError, match="too few") as caught:
        moec.compile(
            mixtral,
            out=tmp_path / "engine",
            pipeline="quantize(method=gptq, group=16)",
            calibration=tmp_path / "ids.npy",
        )
    assert caught.value.code == "M211" and not (tmp_path / "engine").exists()


@pytest.mark.parametrize("floor", [-1, 2.5, True])
def test_a_floor_that_is_none(floor: Any) -> None:
    with pytest.raises(MoecError, match="floor=") as caught:
        quantized("mixtral", f"bits=4, group=16, method=gptq, floor={floor}")
    assert caught.value.code == "M203"
