"""Programs in FP8 and NVFP4 go into the compressed-tensors form and come back with the same numbers; the format's own
library reads them, to the digits that it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.gguf.write import save_gguf
from moec.huggingface.saving.float_tensors import check_common
from moec.huggingface.saving.plain_weights import with_plain_weights
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource
from moec.weights.lazy import decoded, from_tensor
from moec.weights.weight import FloatCodes
from tests.huggingface import packed
from tests.huggingface.conftest import Saved

TOLERANCE = 2e-5  # of the logits' standard deviation
# its library multiplies in bfloat16, with 8 bits of fraction: twice rounded
THEIRS = 2**-7
CASES = [
    ("mixtral", "quantize(bits=8, format=fp8, lm_head=16)"),
    ("mixtral", "quantize(bits=4, format=nvfp4, lm_head=16)"),
    ("llama", "quantize(bits=4, format=nvfp4, lm_head=8)"),
    ("llama", "upcycle(experts=2, top_k=1), quantize(bits=8, format=fp8)"),
    ("qwen3_moe", "quantize(bits=4, group=16, rules={'*.experts.*': {'bits': 8, 'format': 'fp8'}}, lm_head=16)"),
]
SPOILED = {
    "mixtral": "model.layers.0.block_sparse_moe.experts.1.w1.weight",
    "llama": "model.layers.1.self_attn.v_proj.weight",
    "qwen3_moe": "model.layers.1.mlp.experts.0.up_proj.weight",
}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def made(
    request: pytest.FixtureRequest, saved: Saved, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, HuggingFaceSource, torch.Tensor, Path]:
    """A model's name, its source, the logits of the quantized program, and the folder that it was saved in."""
    name, text = request.param
    folder = tmp_path_factory.mktemp("floats") / "out"
    source, program = packed.write(saved(name), text, folder)
    return name, source, packed.logits_of(program.run, source), folder


def test_round_trip(made: tuple[str, HuggingFaceSource, torch.Tensor, Path]) -> None:
    _, source, wanted, folder = made
    back = open_source(str(folder))
    found, reference = packed.logits_of(back.capture().run, back), packed.logits_of(back.reference(), back)
    untouched = packed.logits_of(source.reference(), source)
    assert torch.equal(found, wanted)
    assert float((reference - wanted).abs().max() / wanted.std()) < TOLERANCE
    assert float((untouched - wanted).abs().max() / wanted.std()) > 100 * TOLERANCE  # it was quantized


@pytest.mark.parametrize("ending", ["_scale", "_global_scale"])
def test_a_spoiled_scale_is_seen(
    ending: str, made: tuple[str, HuggingFaceSource, torch.Tensor, Path], tmp_path: Path
) -> None:
    name, _, wanted, folder = made
    tensors = packed.tensors(folder)
    key = next((k for k in tensors if k.endswith(ending) and k.startswith(SPOILED[name][:-7])), None)
    if key is None:
        pytest.skip(f"this form has no {ending} there")
    tensors[key] = (tensors[key].float() * 1.25).to(tensors[key].dtype)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    back = open_source(str(tmp_path))
    assert float((packed.logits_of(back.capture().run, back) - wanted).abs().max() / wanted.std()) > TOLERANCE


def test_the_formats_library_reads_the_same(made: tuple[str, HuggingFaceSource, torch.Tensor, Path]) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    folder = made[-1]
    theirs, ours = packed.read_by_library(folder), open_source(str(folder)).origin.checkpoint.weights  # type: ignore[attr-defined]
    assert len(theirs) > 6 and set(theirs) <= set(ours)
    for name, value in theirs.items():
        own = ours[name].load().float()
        assert float((value.float() - own).abs().max()) <= THEIRS * float(own.abs().max()), name


def test_parts_that_are_one_product_have_one_global_scale(saved: Saved, tmp_path: Path) -> None:
    """A server takes the largest for all of them."""
    _, program = packed.write(saved("llama"), "quantize(bits=4, format=nvfp4, lm_head=16)", tmp_path / "out")
    tensors = packed.tensors(tmp_path / "out")
    at = "model.layers.0.self_attn."
    assert len({float(tensors[f"{at}{x}_proj.weight_global_scale"]) for x in "qkv"}) == 1
    assert float(tensors[f"{at}o_proj.weight_global_scale"]) != float(tensors[f"{at}q_proj.weight_global_scale"])
    stored = dict(with_plain_weights(program).weights)
    check_common(stored, "here")
    name = "model.layers.0.self_attn.k_proj.weight"
    codes = stored[name].coded
    assert isinstance(codes, FloatCodes) and codes.overall is not None
    stored[name] = decoded(replace(codes, overall=from_tensor(torch.tensor(0.1), "another")))
    with pytest.raises(MoecError, match="q_proj, k_proj, v_proj of model") as caught:
        check_common(stored, "here")
    assert caught.value.code == "M206"


@pytest.mark.parametrize("form", ["gptq", "gguf"])
def test_other_forms_refuse_small_floats(form: str, saved: Saved, tmp_path: Path) -> None:
    if form == "gguf":
        pytest.importorskip("gguf", reason="gguf is not installed")
    source, program = packed.write(saved("llama"), "quantize(bits=8, format=fp8)", tmp_path / "one")
    with pytest.raises(MoecError, match="small floats") as caught:
        if form == "gptq":
            save_hf(program, tmp_path / "out", source, hf_format="gptq")
        else:
            save_gguf(program, tmp_path / "m.gguf", source)
    assert caught.value.code == "M206" and not (tmp_path / "out").exists()


def test_config_names_the_forms(saved: Saved, tmp_path: Path) -> None:
    packed.write(saved("mixtral"), CASES[1][1], tmp_path / "four")
    packed.write(saved("qwen3_moe"), CASES[-1][1], tmp_path / "both")
    four, both = packed.config_of(tmp_path / "four"), packed.config_of(tmp_path / "both")
    assert four["format"] == "nvfp4-pack-quantized" and both["format"] == "mixed-precision"
    assert {g["format"] for g in both["config_groups"].values()} == {"pack-quantized", "naive-quantized"}
    (group,) = four["config_groups"].values()
    assert group["weights"]["strategy"] == "tensor_group" and group["input_activations"] is None
