"""Programs in FP8 and NVFP4 go into ModelOpt's form and come back with the same numbers; ModelOpt's own tensors read
them alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.saving.plain_weights import with_plain_weights
from moec.huggingface.source import HuggingFaceSource
from moec.program.program import Program
from tests.huggingface import packed
from tests.huggingface.conftest import Saved

CASES = [
    ("mixtral", "quantize(bits=4, format=nvfp4, lm_head=16)"),
    ("llama", "quantize(bits=8, format=fp8, lm_head=16)"),
    ("llama", "upcycle(experts=2, top_k=1), quantize(bits=4, format=nvfp4)"),  # its head is FP8
    ("mixtral", "quantize(bits=8, format=fp8, rules={'*.experts.*': {'bits': 4, 'format': 'nvfp4'}}, lm_head=16)"),
    ("qwen3_moe", "quantize(bits=4, format=nvfp4, experts=16, lm_head=16)"),
]
Made = tuple[str, HuggingFaceSource, Program, Path]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def made(request: pytest.FixtureRequest, saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model's name, its source, the quantized program, and the folder that it was saved in."""
    name, text = request.param
    folder = tmp_path_factory.mktemp("modelopt") / "out"
    return name, *packed.write(saved(name), text, folder, "modelopt"), folder


def numbers_of(program: Program) -> dict[str, torch.Tensor]:
    return {name: weight.load() for name, weight in with_plain_weights(program).weights.items()}


def test_round_trip_bit_for_bit(made: Made) -> None:
    _, source, program, folder = made
    back = open_source(str(folder))
    again = back.capture()
    assert torch.equal(packed.logits_of(again.run, back), packed.logits_of(program.run, source))
    if not any(step.name == "upcycle" for step in program.history):  # else a table has two names in one of them
        own, found = numbers_of(program), {name: weight.load() for name, weight in again.weights.items()}
        assert all(torch.equal(found[name], own[name]) for name in found) and len(found) > 10
    untouched = packed.logits_of(source.reference(), source)
    assert not torch.equal(untouched, packed.logits_of(program.run, source))


def test_both_configs_say_the_same(made: Made) -> None:
    """An older reader takes the file beside the weights, a newer one config.json."""
    folder = made[-1]
    inside, beside = packed.config_of(folder), json.loads((folder / "hf_quant_config.json").read_text())
    said = beside["quantization"]
    assert inside["quant_method"] == "modelopt" and inside["quant_algo"] == said["quant_algo"]
    assert inside["ignore"] == said.get("exclude_modules", [])
    assert inside.get("quantized_layers") == said.get("quantized_layers")
    assert beside["producer"]["name"] == "moec"


def test_the_older_file_alone_is_read(made: Made, tmp_path: Path) -> None:
    folder = made[-1]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    one, two = (open_source(str(place)).origin.checkpoint.weights for place in (folder, tmp_path))  # type: ignore[attr-defined]
    assert one.keys() == two.keys() and all(torch.equal(one[name].load(), two[name].load()) for name in one)


@pytest.mark.serving
def test_modelopts_own_tensors_read_the_same(made: Made) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor

    folder = made[-1]
    stored, ours = packed.tensors(folder), open_source(str(folder)).origin.checkpoint.weights  # type: ignore[attr-defined]
    bases = [name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")]
    assert len(bases) > 6
    for name in bases:
        codes, scale, overall = stored[name], stored[f"{name}_scale"], stored.get(f"{name}_scale_2")
        shape = torch.Size(ours[name].shape)
        if overall is None:
            theirs = FP8QTensor(shape, torch.float32, codes).dequantize(scale=scale[:, None])
        else:
            kind = NVFP4QTensor(shape, torch.float32, codes)
            theirs = kind.dequantize(scale=scale, double_scale=overall, block_sizes={-1: 16})
        assert torch.equal(theirs, ours[name].load()), name


@pytest.mark.serving
def test_modelopt_writes_the_same_into_config_json(made: Made) -> None:
    """Of the file beside the weights; it numbers groups in another order."""
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format

    folder = made[-1]
    theirs: dict[str, Any] = convert_hf_quant_config_format(json.loads((folder / "hf_quant_config.json").read_text()))
    ours = packed.config_of(folder)
    groups = [sorted((c.pop("config_groups", None) or {}).values(), key=str) for c in (theirs, ours)]
    assert ours == theirs and groups[0] == groups[1]


def _spoiled(folder: Path, tmp_path: Path, change: Any) -> Path:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = packed.tensors(folder)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_the_other_convention_is_another_model(saved: Saved, tmp_path: Path) -> None:
    """The inverse in the place of the number that is multiplied, as the compressed-tensors form has it."""
    _, program = packed.write(saved("llama"), CASES[0][1], tmp_path / "out", "modelopt")
    name = "model.layers.1.mlp.down_proj.weight"
    overall = packed.tensors(tmp_path / "out")[f"{name}_scale_2"]
    largest = float(numbers_of(program)[name].abs().max())
    assert overall.shape == () and overall.dtype == torch.float32
    assert largest / (6 * 448) == pytest.approx(float(overall), rel=0.1)  # amax over the largest of E2M1 and of E4M3

    def invert(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{name}_scale_2"] = 1 / tensors[f"{name}_scale_2"]

    (tmp_path / "other").mkdir()
    back = open_source(str(_spoiled(tmp_path / "out", tmp_path / "other", invert)))
    assert not torch.allclose(
        back.capture().weights[name].load(), numbers_of(program)[name], rtol=0.5, atol=largest / 2
    )


def test_names_of_another_form_are_refused(saved: Saved, tmp_path: Path) -> None:
    packed.write(saved("llama"), CASES[0][1], tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "ignore": []}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(MoecError, match="a name of the compressed-tensors form") as caught:
        open_source(str(tmp_path / "one"))
    assert caught.value.code == "M205"


def _lack(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight_scale_2"]


def _widen(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight_scale"
    tensors[name] = tensors[name][:, :-1].contiguous()


def _add_factors(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.gate_up_proj_weight_scale"] = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "words", "code"),
    [(_lack, "do not fit", "M205"), (_widen, "do not fit", "M205"), (_add_factors, "no part of a linear", "M206")],
)
def test_tensors_that_do_not_fit_are_refused(change: Any, words: str, code: str, saved: Saved, tmp_path: Path) -> None:
    packed.write(saved("llama"), CASES[0][1], tmp_path / "out", "modelopt")
    (tmp_path / "spoiled").mkdir()
    with pytest.raises(MoecError, match=words) as caught:
        open_source(str(_spoiled(tmp_path / "out", tmp_path / "spoiled", change)))
    assert caught.value.code == code


def test_scales_of_activations_are_left_out(saved: Saved, tmp_path: Path) -> None:
    """As ModelOpt writes them where it has seen a text, with FP8's one scale a weight."""
    source, program = packed.write(saved("llama"), CASES[1][1], tmp_path / "out", "modelopt")

    def as_static(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith(".weight_scale")]:
            tensors[name] = tensors[name][0].clone()
            tensors[name.replace("weight_scale", "input_scale")] = torch.tensor(0.25)
        tensors["model.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(0.5)

    (tmp_path / "other").mkdir()
    folder = _spoiled(tmp_path / "out", tmp_path / "other", as_static)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_algo"] = "FP8"
    (folder / "config.json").write_text(json.dumps(config))
    back = open_source(str(folder))
    assert torch.equal(packed.logits_of(back.capture().run, back), packed.logits_of(program.run, source))


@pytest.mark.parametrize(
    ("name", "text", "words", "ways"),
    [
        ("llama", "quantize(bits=4, group=16)", "integers", ["quantize(bits=4, format=nvfp4)"]),
        ("llama", "quantize(bits=4, format=nvfp4, rules={'lm_head*': {'bits': 8, 'format': 'int', 'group': 16}})",
         "lm_head.weight is in integers", ["quantize(bits=4, format=nvfp4, lm_head=16)"]),
        ("mixtral", "quantize(bits=8, format=fp8)", "in FP8", [CASES[3][1]]),
        ("llama", "upcycle(experts=2, top_k=1)", "no matrix", ["quantize(bits=4, format=nvfp4)"]),
    ],
)  # fmt: skip
def test_what_the_form_has_no_place_for_is_refused_with_a_way_out(
    name: str, text: str, words: str, ways: list[str], saved: Saved, tmp_path: Path
) -> None:
    with pytest.raises(MoecError, match=words) as caught:
        packed.write(saved(name), text, tmp_path / "out", "modelopt")
    assert caught.value.code == "M206" and not (tmp_path / "out").exists()
    for way in ways:
        packed.write(saved(name), way, tmp_path / "out", "modelopt")


def test_what_is_left_out_is_said_by_patterns_that_fit_nothing_else(saved: Saved, tmp_path: Path) -> None:
    from fnmatch import fnmatch

    _, program = packed.write(saved("qwen3_moe"), CASES[-1][1], tmp_path / "out", "modelopt")
    patterns, stored = packed.config_of(tmp_path / "out")["ignore"], packed.tensors(tmp_path / "out")
    named = {name.removesuffix(".weight"): f"{name}_scale" in stored for name in stored if stored[name].dim() == 2}
    modules = {name: small for name, small in named.items() if not name.endswith(("_scale", "embed_tokens"))}
    assert len(modules) > 20 and program is not None
    assert {name for name in modules if any(fnmatch(name, p) for p in patterns)} == {
        n for n, s in modules.items() if not s
    }
    assert "model.layers.0.mlp.experts*" in patterns


@pytest.mark.serving
def test_what_modelopt_itself_writes_is_read(saved: Saved, tmp_path: Path) -> None:
    """On a CPU it writes FP8 alone, with scales of activations."""
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved("llama"), dtype=torch.float32)
    quantized = mtq.quantize(model, mtq.FP8_DEFAULT_CFG, lambda each: each(torch.arange(32)[None]))
    wanted = {  # those that are joined with no other, whose scales it would make one
        f"{name}.weight": module.weight_quantizer(module.weight).detach()
        for name, module in quantized.named_modules()
        if name.endswith(("o_proj", "down_proj"))
    }
    export_hf_checkpoint(quantized, export_dir=str(tmp_path / "out"))
    ours = open_source(str(tmp_path / "out")).origin.checkpoint.weights  # type: ignore[attr-defined]
    assert len(wanted) == 4 and not any("scale" in name for name in ours)
    for name, value in wanted.items():
        found = ours[name].load()
        assert torch.allclose(found, value, rtol=1e-6, atol=0), name
        assert not torch.allclose(2 * found, value, rtol=1e-6, atol=0)
