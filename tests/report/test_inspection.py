"""Parameters, active parameters and FLOPs against what the models themselves say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moec.compiler.open import open_source
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.report.inspection import inspect_program
from tests import mixtures
from tests.mixtures import Loop, Masked, Stacked, mixture
from tests.moe_module import EXPERTS, HIDDEN, VOCAB, MoeModel, source_of
from tests.zoo import build


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def frequencies(model: nn.Module) -> int:
    """The one buffer that these models compute with."""
    return int(model.get_buffer("model.rotary_emb.inv_freq").numel())


@pytest.fixture(scope="module")
def mixtral() -> nn.Module:
    return build("mixtral")


def test_a_mixture(mixtral: nn.Module) -> None:
    found = inspect_program(open_source(mixtral).capture())
    assert found.parameters == count(mixtral.parameters()) + frequencies(mixtral)
    blocks = [m for n, m in mixtral.named_modules() if n.endswith(".mlp")]
    assert [(b.kind, b.experts, b.top_k, b.hidden, b.intermediate) for b in found.blocks] == [("moe", 8, 2, 32, 48)] * 2
    assert [b.parameters for b in found.blocks] == [count(m.parameters()) for m in blocks]
    idle = sum(count(m.experts.parameters()) * 6 // 8 for m in blocks)  # type: ignore[union-attr]  # 6 of 8 experts see nothing of a token
    table = count(mixtral.get_input_embeddings().parameters())  # type: ignore[operator]
    assert found.active_parameters == found.parameters - idle
    assert found.active_without_embedding == found.active_parameters - table
    vectors = count(p for p in mixtral.parameters() if p.dim() == 1) + frequencies(mixtral)
    assert found.flops_per_token == 2 * (found.active_without_embedding - vectors)
    assert found.blocks[0].routing["score"] == "softmax" and found.blocks[0].module.endswith("layers.0.mlp.experts")
    assert not found.misses


def test_packed_weights_count_as_what_they_stand_for(mixtral: nn.Module) -> None:
    plain = open_source(mixtral).capture()
    packed, _ = Pipeline.parse("quantize(bits=4, group=16, embeddings=8)").run(plain, Context())
    before, after = (inspect_program(program) for program in (plain, packed))
    for name in ("parameters", "active_parameters", "active_without_embedding", "flops_per_token"):
        assert getattr(after, name) == getattr(before, name) > 0, name
    assert after.size_bytes < before.size_bytes / 2


def test_a_dense_model_with_tied_embeddings() -> None:
    model = build("llama")
    found = inspect_program(open_source(model).capture())
    assert found.parameters == found.active_parameters == count(model.parameters()) + frequencies(model)
    assert [(b.kind, b.experts, b.hidden, b.intermediate) for b in found.blocks] == [("ffn", 1, 32, 48)] * 2
    assert [b.parameters for b in found.blocks] == [3 * 32 * 48] * 2
    assert found.active_without_embedding == found.active_parameters  # the table is the head's matrix too
    assert found.flops_per_token == 2 * count(p for p in model.parameters() if p.dim() > 1)


def test_experts_behind_a_router_of_any_kind() -> None:
    model = MoeModel()
    found = inspect_program(source_of(model).capture())
    assert found.parameters == count(model.parameters()) - EXPERTS * (
        24 + HIDDEN
    )  # the first block does not use its biases
    assert [(b.module, b.kind, b.experts, b.top_k) for b in found.blocks] == [
        ("blocks.0", "moe", EXPERTS, 2),
        ("blocks.1", "moe", EXPERTS, 2),
    ]
    each = 24 * HIDDEN + HIDDEN * 12
    assert found.blocks[0].parameters - found.blocks[0].active_parameters == 2 * each
    assert (found.inputs, found.outputs) == (["input_ids: int64[batch, sequence]"], ["logits"])


def test_no_weight_is_loaded() -> None:
    with torch.device("meta"):
        model = MoeModel()
    weights = dict(MoeModel().named_parameters())
    from moec.frontend.export import capture
    from moec.weights.lazy import Weight

    def refuse(start: int, stop: int) -> torch.Tensor:
        raise AssertionError("a weight was read")

    lazy = {n: Weight(tuple(p.shape), p.dtype, n, refuse) for n, p in weights.items()}
    program = capture(
        model, {"input_ids": torch.zeros(3, 11, dtype=torch.int64)}, {"input_ids": ("batch", "sequence")}, weights=lazy
    )
    assert inspect_program(program).size_bytes > VOCAB * HIDDEN * 4


def test_a_mixture_in_plain_operators_is_named_as_one_that_is_not_fused() -> None:
    model = mixture(Masked)
    found = inspect_program(mixtures.source_of(model).capture())
    experts = count(model.experts.parameters())
    assert [(b.kind, b.module, b.experts, b.top_k) for b in found.blocks] == [("unfused", "experts", 4, 2)]
    assert (found.blocks[0].hidden, found.blocks[0].intermediate) == (16, 24)
    assert found.blocks[0].parameters == experts and found.active_parameters == found.parameters - experts // 2
    assert [(m.pass_name, m.node) for m in found.misses if "not fused" in m.reason] == [("fuse-moe", "experts")]


def test_stacked_experts_in_plain_operators() -> None:
    (block,) = inspect_program(mixtures.source_of(mixture(Stacked)).capture()).blocks
    assert (block.kind, block.experts, block.top_k, block.parameters) == ("moe", 4, 2, 2 * 4 * 16 * 24 + 68)


def test_a_mixture_in_plain_operators_that_the_dialect_can_say_is_one() -> None:
    model = mixture(Loop)
    found = inspect_program(mixtures.source_of(model).capture())
    experts = count(model.experts.parameters())
    assert [(b.kind, b.experts, b.top_k) for b in found.blocks] == [("moe", 4, 2)] and not found.misses
    assert found.active_parameters == found.parameters - experts // 2
