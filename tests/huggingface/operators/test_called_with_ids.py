"""DBRX's, LongCat's and nomic-embed-text-v2-moe's experts: adapted when proven, refused by name otherwise; equal to the
model, cache and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

from moec import open_source
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.huggingface.source import HuggingFaceSource
from moec.program.moe_call import MoeCall, moe_nodes
from tests import nomic_moe


def dbrx() -> Any:
    attention = {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}
    ffn = {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64}
    sizes = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "vocab_size": 96}
    config = transformers.DbrxConfig(**sizes, attn_config=attention, ffn_config=ffn)
    return transformers.DbrxForCausalLM(config)


def longcat() -> Any:
    sizes = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"moe_topk": 3, "n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 64}
    config = transformers.LongcatFlashConfig(
        vocab_size=96, hidden_size=64, num_layers=1, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=4, ffn_hidden_size=80, max_position_embeddings=128, **sizes, **experts,
    )  # fmt: skip
    return transformers.LongcatFlashForCausalLM(config)


def step(limits: tuple[float, float] = (0.3, 0.0)) -> Any:
    config = Step3p7TextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, moe_intermediate_size=24, share_expert_dim=24, n_routed_experts=4, num_local_experts=4,
        num_experts_per_tok=2, mlp_layer_types=["sparse", "sparse"], swiglu_limits=list(limits), sliding_window=5,
    )  # fmt: skip
    return Step3p7TextModel(config)


def test_step_3s_gate_is_clamped_behind_its_activation() -> None:
    """By layer: the first has a limit, the second none; both as the model computes them."""
    torch.manual_seed(0)
    model = step().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    program = HuggingFaceSource.from_model(model, cache=False).capture()
    rules = [MoeCall(node).activation for node in moe_nodes(program)]
    assert [(rule.limit, rule.clamp_after) for rule in rules] == [(0.3, True), (0.0, False)]
    ids = torch.randint(0, 96, (3, 17))
    with torch.no_grad():
        want = model(input_ids=ids).last_hidden_state
    found = EagerEngine(program)(input_ids=ids, attention_mask=torch.ones_like(ids))["last_hidden_state"]
    assert (found - want).abs().max() <= 1e-4 * want.std()


def saved(make: Callable[[], Any], folder: Path) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * (0.3 if "experts" in name or "router" in name else 0.1) + (p.dim() == 1))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("make", "blocks"), [(dbrx, 2), (longcat, 1)])
def test_experts_are_one_operator_and_equal_the_model(make: Callable[[], Any], blocks: int, tmp_path: Path) -> None:
    model = saved(make, tmp_path)
    program = open_source(str(tmp_path), cache=False).capture()
    assert len(moe_nodes(program)) == blocks
    for batch, length in ((1, 1), (3, 17)):
        ids = torch.randint(0, 96, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            want = model(input_ids=ids).logits
        found = EagerEngine(program)(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
        assert (found - want).abs().max() <= 1e-4 * want.std()


@pytest.mark.parametrize(("make", "name"), [(dbrx, "DbrxExperts"), (longcat, "LongcatFlashExperts")])
def test_the_same_parts_with_another_meaning_are_refused(
    make: Callable[[], Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(make, tmp_path)
    kind = next(type(m) for m in model.modules() if type(m).__name__ == name)
    original = kind.forward

    def halved(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        return original(self, hidden_states, top_k_index, 0.5 * top_k_weights)

    monkeypatch.setattr(kind, "forward", halved)
    with pytest.raises(MoecError) as error:
        open_source(str(tmp_path), cache=False).capture()
    assert error.value.code == "M206" and name in error.value.what and "does not compute" in error.value.what


def padded(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 96, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, (length + 1) // 2 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def test_experts_one_below_the_other_without_a_gate_in_a_padded_batch(tmp_path: Path) -> None:
    nomic_moe.save(tmp_path)
    source = open_source(str(tmp_path), trust_remote_code=True)
    program = source.capture()
    assert len(moe_nodes(program)) == 1
    for batch, length in ((1, 1), (3, 17)):
        given = padded(batch, length)
        want = source.reference()(**given)["last_hidden_state"]
        found = EagerEngine(program)(**given)["last_hidden_state"]
        seen = given["attention_mask"].bool()
        assert (found - want)[seen].abs().max() <= 1e-4 * want.std()
        assert (found.roll(1, -1) - want)[seen].abs().max() > 1e-2 * want.std()


def test_another_bias_is_refused(tmp_path: Path) -> None:
    nomic_moe.save(tmp_path)
    code = (tmp_path / "nomic_moe.py").read_text()
    (tmp_path / "nomic_moe.py").write_text(code.replace("+ self.bias", "+ 2 * self.bias"))
    with pytest.raises(MoecError, match="does not compute"):
        open_source(str(tmp_path), trust_remote_code=True).capture()
