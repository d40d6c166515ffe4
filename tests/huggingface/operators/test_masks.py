"""Masks by rules of a model's own: the same by broadcast as mapped, and plain operators in a graph."""

from __future__ import annotations

import operator

import torch
import transformers
from torch import Tensor
from transformers import masking_utils
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrTextConfig
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrTextModel

from moec.huggingface.operators.masks import masks_by_broadcast
from moec.huggingface.source import HuggingFaceSource

PADDING = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


def own_rule(batch: Tensor, head: Tensor, token: Tensor, other: Tensor) -> Tensor:
    """The first two tokens are seen by all, and every token by those of its own parity."""
    return (other < 2) | ((token - other) % 2 == 0)


def made() -> Tensor:
    config = transformers.LlamaConfig(hidden_size=8, num_attention_heads=2, attn_implementation="eager")
    mask = masking_utils.create_causal_mask(
        config, torch.zeros(2, 6, 8), PADDING, None, and_mask_function=own_rule, or_mask_function=own_rule
    )
    assert isinstance(mask, Tensor)
    return mask


def test_a_rule_gives_the_same_mask_as_mapped() -> None:
    wanted = made()
    with masks_by_broadcast():
        found = made()
    assert torch.equal(found, wanted) and found.shape == (2, 1, 6, 6) and wanted.unique().numel() == 2
    assert torch.equal(made(), wanted)  # transformers is as it was
    assert masking_utils.TransformGetItemToIndex is not None and masking_utils._vmap_expansion_sdpa.__module__ != (
        "moec.huggingface.operators.masks"
    )


def test_a_model_with_a_rule_of_its_own_is_captured_without_higher_order_operators() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    config = UnlimitedOcrTextConfig(**sizes, **experts, vocab_size=40, num_key_value_heads=2, sliding_window=3)
    program = HuggingFaceSource.from_model(UnlimitedOcrTextModel(config).eval(), cache=False).capture()
    named = {n.target for n in program.graph.nodes if n.op == "call_function"}
    assert all(isinstance(target, torch._ops.OpOverload) or target is operator.getitem for target in named)
