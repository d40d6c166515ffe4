"""`quantize`: which weights become integers, which never do, what it costs, and what is refused."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, fx

from moec.cli.config import presets
from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.frontend.stored_program import load_program, save_program
from moec.huggingface.source import HuggingFaceSource
from moec.passes.quantize import Quantize
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline, StepReport
from moec.program.program import Program
from moec.registry import find
from moec.weights.lazy import from_file
from tests import zoo

SIZES = {"batch": 2, "sequence": 9}  # capture uses others
# `error` of these tiny random models; measured 0.010 to 0.013 at 8 bits, 0.11 to 0.21 at 4 and 0.37 to 0.79 at 2
BOUNDS = {8: 0.03, 4: 0.3}
WIDER = {
    "qwen3_moe": {"moe_intermediate_size": 48},
    "gpt_oss": {"intermediate_size": 48},
}  # rows that groups of 16 divide
MODELS = ("mixtral", "qwen3_moe", "gpt_oss", "llama", "gpt2")


@cache
def source(name: str) -> HuggingFaceSource:
    if name not in WIDER:
        return zoo.source(name)
    config = zoo.moe_configs()[name]
    for key, value in WIDER[name].items():
        setattr(config, key, value)
    model = getattr(transformers, config.architectures[0])(config)
    zoo.randomize(model, 0)
    return HuggingFaceSource.from_model(model.eval())


@cache
def program(name: str) -> Program:
    return zoo.captured(name) if name not in WIDER else source(name).capture()


@cache
def reference(name: str) -> Tensor:
    return program(name).run(**source(name).sample(SIZES))["logits"]


def quantized(name: str, text: str) -> tuple[Program, StepReport]:
    found, (step,) = Pipeline.parse(f"quantize({text})").run(program(name))
    return found, step


def error(name: str, found: Program) -> float:
    """The median token's ‖difference‖/‖logits‖: a token whose experts changed says more of its router than of the
    weights."""
    y, want = found.run(**source(name).sample(SIZES))["logits"], reference(name)
    return float(((y - want).norm(dim=-1) / want.norm(dim=-1)).median())


def packed(found: Program) -> dict[str, int]:
    """Weights behind `moec::dequantize`, and their bits."""
    nodes = found.nodes(torch.ops.moec.dequantize)
    return {str(n.args[0].target).removesuffix("_packed"): n.kwargs["bits"] for n in nodes}  # type: ignore[union-attr, misc]


def below_16_bits(found: Program) -> set[str]:
    """Names of packed weights that a router or gate of the zoo's models holds."""
    return {
        n
        for n in packed(found)
        if n.endswith(("mlp.gate.weight", "router.weight", "shared_expert_gate.weight", "norm.weight", "bias", "sinks"))
    }


# ---------------------------------------------------------------------- numbers
@pytest.mark.parametrize("name", MODELS)
def test_errors_are_those_of_the_width(name: str) -> None:
    errors = {bits: error(name, quantized(name, f"bits={bits}, group=16")[0]) for bits in (8, 4, 2)}
    assert 1e-4 < errors[8] < BOUNDS[8] < errors[4] < BOUNDS[4] < errors[2]


@pytest.mark.parametrize("options", ["symmetric=False", "method='hqq'", "symmetric=False, method='hqq'"])
def test_methods_and_grids(options: str) -> None:
    found, step = quantized("mixtral", f"bits=8, group=16, {options}")
    assert (
        error("mixtral", found) < BOUNDS[8] < error("mixtral", quantized("mixtral", f"bits=4, group=16, {options}")[0])
    )
    assert step.contract == "approximate"
    assert any(n.endswith("_zero_point") for n in found.weights) is ("symmetric=False" in options)


def test_streamed_and_stored_programs_say_the_same(tmp_path: Path) -> None:
    found, _ = quantized("mixtral", "bits=4, group=16")
    sample = source("mixtral").sample(SIZES)
    want = found.run(**sample)["logits"]
    torch.testing.assert_close(StreamingEngine(found).run(sample)["logits"], want, rtol=1e-4, atol=1e-5)
    save_program(found, tmp_path)
    again = load_program(tmp_path)
    assert packed(again) == packed(found)
    torch.testing.assert_close(again.run(**sample)["logits"], want)


def test_weights_of_a_file_are_read_when_they_are_packed(mixtral: Path) -> None:
    lazy = open_source(str(mixtral)).capture()
    before = set(lazy.weights)
    found, _ = Pipeline.parse("quantize(bits=4, group=16)").run(lazy)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert f"{name}_packed" in found.weights and name in before and name not in found.weights
    file = from_file(mixtral / "model.safetensors", name)
    value = torch.ops.moec.dequantize(
        found.weights[f"{name}_packed"].load(), found.weights[f"{name}_scale"].load(), None, bits=4
    )
    assert 0.01 < float((value - file.load()).norm() / file.load().norm()) < 0.1


# ---------------------------------------------------------------------- which weights
def test_the_graph_changes_in_nothing_else() -> None:
    found, step = quantized("mixtral", "bits=8, group=16")

    def targets(p):
        calls = (n.target for n in p.graph.nodes if n.op == "call_function")
        return [t for t in calls if t != torch.ops.moec.dequantize.default]

    assert targets(found) == targets(program("mixtral")) and step.rewrites == len(packed(found)) == 13
    assert set(packed(found)) | {n for n in found.weights if not n.endswith(("_packed", "_scale"))} == set(
        program("mixtral").weights
    )


def test_transposed_products_become_linear_layers() -> None:
    found, _ = quantized("gpt2", "bits=8, group=16")
    assert not found.nodes(torch.ops.aten.addmm) and len(found.nodes(torch.ops.aten.linear)) == 9


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe", "llama4", "deepseek_v3"])
def test_routers_and_gates_stay_whatever_is_asked(name: str) -> None:
    narrow = "" if name in (*WIDER, "mixtral") else "'*.experts.*': 16, "
    found, step = quantized(name, f"bits=2, group=16, rules={{{narrow}'*': 2}}")
    assert not below_16_bits(found) and packed(found)
    assert step.facts["kinds"]["router"]["quantized"] == 0 and step.facts["kinds"]["router"]["kept"] > 0


def test_a_pass_that_quantizes_a_router_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.quantization.settings.FINE", ())
    assert len(below_16_bits(quantized("mixtral", "bits=2, group=16")[0])) == 2


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ("", {"embed": None, "q_proj": 4, "experts": 4, "lm_head": 8}),
        ("attention=8, embeddings=2, lm_head=16", {"embed": 2, "q_proj": 8, "experts": 4, "lm_head": None}),
        (
            "experts=2, rules={'*.1.*': 8, 'lm_head': 4}",
            {"embed": None, "0.self_attn.q_proj": 4, "0.mlp.experts": 2, "1.": 8, "lm_head": 4},
        ),
        (
            "rules={'model.embed_tokens': {'bits': 8, 'group': 32}, '*_proj*': 16}",
            {"embed": 8, "q_proj": None, "experts": None, "lm_head": 8},
        ),
    ],
)
def test_rules(options: str, bits: dict[str, int | None]) -> None:
    found = packed(quantized("mixtral", f"bits=4, group=16{', ' if options else ''}{options}")[0])
    for part, width in bits.items():
        names = [
            n
            for n in program("mixtral").weights
            if part in n and "norm" not in n and "mlp.gate." not in n and "inv_freq" not in n
        ]
        assert names and {found.get(n) for n in names} == {width}


def test_a_rule_can_have_its_own_group() -> None:
    found, _ = quantized("mixtral", "bits=4, group=16, rules={'*.q_proj': {'group': 32, 'symmetric': False}}")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found.weights[f"{name}_scale"].shape == (32, 1) and f"{name}_zero_point" in found.weights
    assert found.weights[f"{name.replace('q_proj', 'k_proj')}_scale"].shape == (16, 2)


# ---------------------------------------------------------------------- tied embeddings
def test_a_tied_table_is_packed_once() -> None:
    found, step = quantized("llama", "bits=4, group=16")
    (node,) = [n for n in found.nodes(torch.ops.moec.dequantize) if "lm_head" in str(n.args[0])]
    assert {u.target for u in node.users} == {
        torch.ops.aten.linear.default,
        torch.ops.aten.embedding.default,
    } and node.kwargs["bits"] == 8
    assert "lm_head.weight" not in found.weights and step.rewrites == 16


@pytest.mark.parametrize("options", ["embeddings=16", "rules={'model.embed_tokens': 16}"])
def test_a_tied_table_can_be_kept_for_the_embedding(options: str) -> None:
    found, step = quantized("llama", f"bits=4, group=16, {options}")
    (embedding,) = found.nodes(torch.ops.aten.embedding)
    assert (
        isinstance(embedding.args[0], fx.Node)
        and embedding.args[0].target == "lm_head.weight"
        and packed(found)["lm_head.weight"] == 8
    )
    assert step.facts["kinds"]["embeddings"] == {
        "quantized": 0,
        "kept": 1,
        "bytes_quantized": 0,
        "bytes_kept": 96 * 32 * 4,
        "grids": [],
    }


def test_a_tied_table_that_stays() -> None:
    assert "lm_head.weight" not in packed(quantized("llama", "bits=4, group=16, lm_head=16")[0])


# ---------------------------------------------------------------------- report, text, second run
def test_bytes_in_the_report_are_those_of_the_weights() -> None:
    found, step = quantized("mixtral", "bits=4, group=16")
    facts, kinds = step.facts, step.facts["kinds"]
    assert facts["bytes_before"] == sum(w.size_bytes for w in program("mixtral").weights.values())
    assert facts["bytes_after"] == sum(w.load().numel() * w.dtype.itemsize for w in found.weights.values())
    experts = 2 * 8 * 3 * 48 * 32
    assert kinds["experts"] == {
        "quantized": 4,
        "kept": 0,
        "bytes_quantized": experts * 4,
        "bytes_kept": 0,
        "grids": ["4 bit, group 16, symmetric, rtn"],
    }
    assert kinds["embeddings"]["bytes_kept"] == 96 * 32 * 4 and kinds["lm_head"]["grids"] == [
        "8 bit, group 16, symmetric, rtn"
    ]
    saved = experts * 4 - experts * (4 + 32 / 16) / 8 + kinds["attention"]["bytes_quantized"] * (1 - 6 / 32)
    assert facts["bytes_before"] - facts["bytes_after"] == saved + 96 * 32 * 4 * (1 - 10 / 32) - 0
    assert facts["bytes_quantized"] == sum(k["bytes_quantized"] for k in kinds.values())


@pytest.mark.parametrize("options", ["bits=8, group=16", "bits=4, group=16, attention=8, rules={'lm_head': 4}"])
def test_a_second_run_changes_nothing(options: str) -> None:
    found, _ = quantized("mixtral", options)
    again, (step,) = Pipeline.parse(f"quantize({options})").all_optional().run(found)
    assert step.rewrites == 0 and again.text() == found.text()


@pytest.mark.parametrize(
    "text",
    [
        "quantize",
        "quantize(bits=2, method='hqq', symmetric=False)",
        "quantize(experts=2, rules={'*.0.*': {'bits': 8, 'group': 32}, '*': 4})",
    ],
)
def test_text_round_trip(text: str) -> None:
    assert str(Pipeline.parse(text)) == text and Pipeline.parse(str(Pipeline.parse(text))) == Pipeline.parse(text)


def test_toml_says_the_same_as_text() -> None:
    data = tomllib.loads(
        '[[pass]]\nname = "quantize"\nexperts = 2\nrules = { "*.0.*" = 8, "*" = { bits = 4, group = 32 } }\n'
    )
    assert Pipeline.of(data["pass"]) == Pipeline.parse(
        "quantize(experts=2, rules={'*.0.*': 8, '*': {'bits': 4, 'group': 32}})"
    )


def test_it_is_found_by_name_and_has_presets() -> None:
    assert find("passes", "quantize") is Quantize and {"int4", "int8"} <= set(presets())


@pytest.mark.parametrize(
    "after", ["find-moe, fuse-moe", "upcycle(experts=2, top_k=1), quantize(bits=8, group=16), find-moe, fuse-moe"]
)
def test_beside_other_passes(after: str) -> None:
    dense = after.startswith("upcycle")
    name, text = ("llama", after) if dense else ("mixtral", f"quantize(bits=8, group=16), {after}")
    found, _ = Pipeline.parse(text).all_optional().run(program(name))
    assert len(found.nodes(torch.ops.moec.moe)) == 2 and error(name, found) < BOUNDS[8]
    fused, _ = Pipeline.parse("find-moe, fuse-moe, quantize(bits=8, group=16)").all_optional().run(program("mixtral"))
    assert (
        not below_16_bits(fused)
        and sum("experts" in n for n in packed(fused)) == 4
        and error("mixtral", fused) < BOUNDS[8]
    )


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mixtral", "bits=5", "bits=5 is not one of 2, 3, 4, 8, or 16"),
        ("mixtral", "bits=True", "bits=True"),
        ("mixtral", "group=48", "group=48"),
        ("mixtral", "method='gptq2'", "method='gptq2'"),
        ("mixtral", "symmetric=1", "symmetric=1"),
        ("mixtral", "positive_scales=1", "positive_scales=1"),
        ("mixtral", "group=16, experts=6", "bits=6"),
        ("mixtral", "group=16, rules={'*': 7}", "bits=7"),
        ("mixtral", "group=16, rules={'*': {'bit': 4}}", "no setting 'bit'"),
        ("mixtral", "group=16, rules=['*']", "not a table"),
        ("mixtral", "group=16, rules={'*.q_prj': 4}", "rule '*.q_prj' fits no weight"),
        ("mixtral", "group=16, rules={'*.mlp.gate': 8}", "only routers"),
        ("llama", "group=16, experts=4", "experts fits no weight"),
        ("mixtral", "group=32", "groups of 32 do not divide the 48 inputs"),
        ("llama", "group=64, attention=8", "fits nothing that can be quantized"),
    ],
)
def test_refusals(name: str, options: str, words: str) -> None:
    with pytest.raises(MoecError) as caught:
        quantized(name, options)
    assert caught.value.code == "M203" and words in caught.value.what and caught.value.fix


def test_rows_that_no_group_divides_are_left_and_reported() -> None:
    found, step = quantized("llama", "bits=8, group=32")
    assert {m["reason"] for m in step.misses} == {
        "left as it is: groups of 32 do not divide the 48 inputs of its weight"
    } and len(step.misses) == 2
    assert not any("down_proj" in n for n in packed(found)) and step.facts["kinds"]["dense"]["kept"] == 2
    with pytest.raises(MoecError, match="changed nothing") as caught:
        quantized("llama", "bits=8, group=64")
    assert caught.value.code == "M103"


def test_gradients_reach_what_is_not_packed() -> None:
    found, _ = quantized("mixtral", "bits=8, group=16")
    module = found.module(trainable=True)
    inputs: dict[str, Any] = source("mixtral").sample(SIZES)
    module(*(inputs[i.name] for i in found.inputs))[0].square().mean().backward()
    grads = {n: p.grad for n, p in module.named_parameters()}
    assert all(g is not None for n, g in grads.items() if n.endswith(("_scale", "mlp.gate.weight"))) and not any(
        n.endswith("_packed") for n in grads
    )
    assert float(grads["lm_head.weight_scale"].abs().max()) > 0  # type: ignore[union-attr]


def test_the_seed_does_not_matter() -> None:
    texts = {
        Pipeline.parse("quantize(bits=4, group=16)").run(program("mixtral"), Context(seed))[0].text() for seed in (0, 1)
    }
    assert len(texts) == 1
