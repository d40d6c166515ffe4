"""Captured programs against the untouched model, on sizes, tokens and padding other than the capture's."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from moec import open_source
from moec.errors import MoecError
from moec.frontend.source import Source
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import without_padding
from moec.program.program import Program
from moec.weights.lazy import rowwise
from tests import zoo
from tests.huggingface.conftest import Saved

TOLERANCE = 1e-4
# one token; longer than the capture, than every zoo model's sliding window and than its attention chunk
SIZES = ({"batch": 2, "sequence": 17}, {"batch": 4, "sequence": 1})
EXPERTS = dict.fromkeys(zoo.moe_configs(), 2) | {"deepseek_v2": 1, "deepseek_v3": 1, "glm4_moe": 1}


def difference(program: Program, source: Source) -> float:
    """max |d| / std of the reference over all outputs and sizes."""
    reference, worst = source.reference(), 0.0
    for seed, sizes in enumerate(SIZES):
        inputs = source.sample(sizes, seed)
        found, wanted = program.run(**inputs), reference(**inputs)
        assert list(found) == list(wanted)
        pairs = [tuple(without_padding(v[k], inputs, k, program.inputs) for v in (found, wanted)) for k in wanted]
        worst = max([worst, *(relative(*pair) for pair in pairs)])
    return worst


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape and wanted.isfinite().all() and wanted.std() > 0.1
    return float((found - wanted).abs().max() / wanted.std())


def spoil(program: Program, name: str) -> None:
    # not a mere factor, which a norm would undo
    program.weights[name] = rowwise("spoiled", lambda t: t + 0.02 * t.roll(1, -1), program.weights[name])


@pytest.mark.parametrize("name", zoo.moe_configs())
def test_moe_models(name: str, saved: Saved) -> None:
    source = open_source(str(saved(name)))
    program = source.capture()
    assert len(program.nodes(torch.ops.moec.experts)) == EXPERTS[name]
    assert difference(program, source) <= TOLERANCE
    w_in = program.nodes(torch.ops.moec.experts)[-1].args[3]
    assert isinstance(w_in, torch.fx.Node)
    spoil(program, str(w_in.target))
    assert difference(program, source) > TOLERANCE


@pytest.mark.parametrize("name", zoo.dense_configs())
def test_dense_models(name: str, saved: Saved) -> None:
    source = open_source(str(saved(name)))
    program = source.capture()
    assert difference(program, source) <= TOLERANCE
    spoil(program, [n for n, w in program.weights.items() if ".1." in n and len(w.shape) == 2][-1])
    assert difference(program, source) > TOLERANCE


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_left_padding(name: str, saved: Saved) -> None:
    source = open_source(str(saved(name)))
    program, reference = source.capture(), source.reference()
    inputs = source.sample({"batch": 3, "sequence": 9})
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    real = inputs["attention_mask"].bool()
    found, wanted = program.run(**inputs)["logits"], reference(**inputs)["logits"]
    assert relative(found[real], wanted[real]) <= TOLERANCE
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    assert relative(program.run(**inputs)["logits"][real], wanted[real]) > TOLERANCE, "the mask has no effect"


def test_half_precision_capture_keeps_canonical_layouts(saved: Saved) -> None:
    program = open_source(str(saved("gpt_oss"))).capture(torch.bfloat16)
    node = program.nodes(torch.ops.moec.experts)[0]
    shapes = [tuple(a.meta["val"].shape) for a in node.args[3:7]]  # type: ignore[union-attr, index]
    assert shapes == [(8, 48, 32), (8, 32, 24), (8, 48), (8, 32)]
    assert program.weights[str(node.args[3].target)].dtype == torch.bfloat16  # type: ignore[union-attr, index]


def test_names_are_the_models_own_and_tied_weights_are_one(saved: Saved) -> None:
    program = open_source(str(saved("llama"))).capture()
    assert "model.layers.1.mlp.down_proj.weight" in program.weights
    tied = [w for n, w in program.weights.items() if n in ("model.embed_tokens.weight", "lm_head.weight")]
    assert tied and all(w is tied[0] for w in tied)


def test_the_same_folder_gives_the_same_program(saved: Saved) -> None:
    first, second = (open_source(str(saved("qwen3_moe"))).capture() for _ in range(2))
    assert first.text() == second.text()


def test_constants_that_the_model_makes_of_python_values(tmp_path: Path) -> None:
    config = transformers.FalconConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    model = transformers.FalconForCausalLM(config)  # indexes with [-2], a tensor that has no value on the meta device
    zoo.randomize(model, 0)
    model.save_pretrained(tmp_path)
    source = open_source(str(tmp_path))
    assert difference(source.capture(), source) <= TOLERANCE


def test_hashes_name_the_files(saved: Saved) -> None:
    assert sorted(open_source(str(saved("llama"))).hashes) == ["config.json", "model.safetensors"]


class Remembers(transformers.LlamaForCausalLM):
    """A decoder that does not run with a cache."""

    without = True

    def forward(self, *args: Any, use_cache: bool | None = None, **kwargs: Any) -> Any:
        if use_cache or not self.without:
            raise AssertionError("one text only")
        return super().forward(*args, use_cache=use_cache, **kwargs)

    forward.__signature__ = inspect.signature(transformers.LlamaForCausalLM.forward)  # type: ignore[attr-defined]


@pytest.mark.parametrize("without", [True, False])
def test_no_cache_is_offered_where_it_helps(without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remembers, "without", without)
    model = Remembers(zoo.dense_configs()["llama"]).eval()
    with pytest.raises(MoecError, match="one text only") as caught:
        HuggingFaceSource.from_model(model).account()
    assert ("pass --no-cache" in caught.value.fix) is without
    if without:
        assert HuggingFaceSource.from_model(model, cache=False).capture().outputs == ("logits",)
    else:
        assert "test_source.py" in caught.value.where


def test_no_cache_is_no_way_out_of_what_fails_without_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Any, dtype: torch.dtype, attention: str = "", device: str = "") -> Any:
        raise MoecError("M206", "another scan than its name says", "mixer", "compile its forward alone with --no-cache")

    monkeypatch.setattr(HuggingFaceSource, "_capture", refused)
    with pytest.raises(MoecError) as caught:
        HuggingFaceSource.from_model(zoo.build("llama")).capture()
    assert caught.value.what.endswith(", with a cache and without") and "--no-cache" not in caught.value.fix


def test_only_what_fails_in_the_experts_is_their_fault() -> None:
    class Experts(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    class Model(transformers.LlamaForCausalLM):
        def __init__(self, config: Any, inside: bool) -> None:
            super().__init__(config)
            self.experts, self.inside = Experts(), inside

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            output = super().forward(input_ids, attention_mask)
            if self.inside or output.logits.sum() > 0:
                output.logits = self.experts(output.logits)
            return output

    for inside, code, said in ((True, "M206", "Experts is outside"), (False, "M207", "output.logits.sum() > 0")):
        with pytest.raises(MoecError) as caught:
            HuggingFaceSource.from_model(Model(zoo.dense_configs()["llama"], inside).eval(), cache=False).capture()
        assert caught.value.code == code and said in caught.value.what + caught.value.where
