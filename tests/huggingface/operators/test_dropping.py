"""Switch Transformers' and NLLB-MoE's blocks: tokens over a capacity are dropped as the model drops them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.models.nllb_moe import modeling_nllb_moe as nllb_code
from transformers.models.switch_transformers import modeling_switch_transformers as switch_code

from moec import open_source
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.huggingface.operators import dropping
from moec.huggingface.operators.dropping import adapt_dropping, reads_two_experts_only
from moec.program.dialect_call import ROUTE, RouteCall
from moec.program.moe_call import moe_nodes
from moec.weights.lazy import from_tensor


def switch(**options: Any) -> Any:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_heads": 4, "decoder_start_token_id": 0}
    layers = {"num_layers": 1, "num_decoder_layers": 1, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = transformers.SwitchTransformersConfig(
        **sizes, **layers, num_experts=4, **{"expert_capacity": 3, **options}
    )
    return transformers.SwitchTransformersForConditionalGeneration(config)


def nllb_config(**options: Any) -> Any:
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 24))}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    options = {"moe_eval_capacity_token_fraction": 0.3, "encoder_sparse_step": 1, "decoder_sparse_step": 1, **options}
    return transformers.NllbMoeConfig(
        vocab_size=64, d_model=16, num_experts=4, max_position_embeddings=64, **heads, **sides, **tokens, **options
    )


def nllb(**options: Any) -> Any:
    return transformers.NllbMoeForConditionalGeneration(nllb_config(**options))


@torch.no_grad()
def drawn(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        spread = 0.5 if "classifier" in name else 0.25
        p.copy_(torch.randn(p.shape, generator=generator) * (spread if p.dim() > 1 else 0.1) + (p.dim() == 1))
    return model.eval()


def inputs(batch: int, length: int, decoded: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids, other = (torch.randint(3, 64, (batch, n), generator=generator) for n in (length, decoded))
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[0, length // 2 :], mask[1, :2] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": other}


@pytest.mark.parametrize("make", [switch, pytest.param(nllb, marks=pytest.mark.repeats)])
def test_the_program_equals_the_model_in_padded_batches(make: Callable[..., Any], tmp_path: Path) -> None:
    drawn(make()).save_pretrained(tmp_path)
    source = open_source(str(tmp_path), cache=False)
    program = source.capture()
    assert len(moe_nodes(program)) == 2 == len(program.nodes(ROUTE)) and program.by_call
    for sizes in ((1, 1, 1), (3, 17, 5), (2, 9, 12)):
        given = inputs(*sizes)
        want = source.reference()(**given)["logits"]
        found = EagerEngine(program)(**given)["logits"]
        assert (found - want).abs().max() <= 1e-4 * want.std()
    for node in program.nodes(ROUTE):  # a wrong model: nothing is dropped
        RouteCall(node).replace(capacity=1000)
    assert (EagerEngine(program)(**given)["logits"] - want).abs().max() > 1e-2 * want.std()


def block(**options: Any) -> Any:
    config = nllb_config(**options)
    return drawn(nllb_code.NllbMoeSparseMLP(config, ffn_dim=24))


def adapted(module: Any) -> None:
    table = {f"ffn.{name}": from_tensor(value, name) for name, value in module.named_parameters()}
    adapt_dropping("ffn", module, table)


def as_published(self: Any, x: torch.Tensor, router_mask: torch.Tensor, router_probs: torch.Tensor) -> torch.Tensor:
    """Experts as NLLB-MoE's paper has them: each choice goes to the expert that was chosen."""
    outs = torch.stack([self[f"expert_{e}"](x) for e in range(self.num_experts)], 1)
    return (1 - self.moe_token_dropout) * torch.einsum("te,ted->td", router_probs, outs)


def test_experts_that_no_token_reaches_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In transformers 5 the mask of first choices is read as numbers of experts, 0 and 1."""
    module = block()
    adapted(module)
    assert module.experts.w_in.shape[0] == 2 and reads_two_experts_only(block())
    monkeypatch.setattr(nllb_code.NllbMoeExperts, "forward", as_published)
    module = block()
    adapted(module)
    assert module.experts.w_in.shape[0] == 4 and not reads_two_experts_only(block())


@pytest.mark.parametrize(
    "options",
    [
        {"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": 3},
        {"normalize_router_prob_before_dropping": True},
        {"router_ignore_padding_tokens": True, "router_bias": True, "moe_token_dropout": 0.0},
    ],
)
def test_options_are_followed(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nllb_code.NllbMoeExperts, "forward", as_published)
    module = block(**options)
    adapted(module)  # raises where no rule gives what the block gives
    assert module.experts.w_in.shape[0] == 4 and not reads_two_experts_only(block(**options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"second_expert_policy": "random"}, "at random"),
        ({"second_expert_policy": "sampling"}, "at random"),
        ({"batch_prioritized_routing": True}, "by their scores"),
        ({"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": None}, "its first call"),
        ({"dtype": torch.bfloat16}, "to bfloat16"),
    ],
)
def test_refused_with_the_reason(options: Any, reason: str) -> None:
    module = block()
    for name, value in options.items():
        setattr(module.router, name, value)
    with pytest.raises(MoecError, match=reason) as error:
        adapted(module)
    assert error.value.code == "M206" and error.value.where == "ffn"


def test_the_proof_sees_a_router_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropping, "_why_not", lambda module: "")
    with pytest.raises(MoecError, match="does not compute"):
        adapted(drawn(switch_code.SwitchTransformersSparseMLP(switch(router_dtype="bfloat16").config)))


def test_a_fault_inside_a_block_is_no_other_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: Any, x: torch.Tensor) -> Any:
        return x.no_such_thing  # type: ignore[attr-defined]

    monkeypatch.setattr(switch_code.SwitchTransformersTop1Router, "forward", faulty)
    with pytest.raises(AttributeError, match="no_such_thing"):
        adapted(drawn(switch_code.SwitchTransformersSparseMLP(switch().config)))


def another_line(self: Any, x: torch.Tensor) -> Any:
    """A router that fills experts from the end of the text."""
    probabilities = F.softmax(self.classifier(x), -1)
    best = F.one_hot(probabilities.argmax(-1), self.num_experts)
    place = best.flip(-2).cumsum(-2).flip(-2)
    return best * (place <= self.expert_capacity), probabilities.amax(-1, keepdim=True), None


def test_the_same_parts_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = switch().config
    adapted(drawn(switch_code.SwitchTransformersSparseMLP(config)))
    monkeypatch.setattr(switch_code.SwitchTransformersTop1Router, "forward", another_line)
    with pytest.raises(MoecError, match="does not compute"):
        adapted(drawn(switch_code.SwitchTransformersSparseMLP(config)))
