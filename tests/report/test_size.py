"""Parameters are those that the untouched model has, whatever form they are stored in."""

from __future__ import annotations

import torch

from moec.huggingface.shape import shape_of_model
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.report.inspection import inspect_program
from moec.report.size import parameters, sizes_of
from tests import mixtures, zoo
from tests.mixtures import Loop, mixture
from tests.moe_module import MoeModel, source_of


def test_sizes_are_the_models_own() -> None:
    model = MoeModel()
    captured = source_of(model).capture()
    found = sizes_of(captured, captured, 123)
    unused = ("blocks.0.b_in", "blocks.0.b_out")
    used = {name: p.numel() for name, p in model.named_parameters() if name not in unused}
    assert found.parameters == found.parameters_after == sum(used.values()) and found.stored_bytes == 123
    assert (found.blocks, found.experts, found.top_k) == (2, (4,), (2,))
    of_experts = sum(n for name, n in used.items() if name.rpartition(".")[2] in ("w_in", "w_out", "b_in", "b_out"))
    assert found.active_after == sum(used.values()) - of_experts // 2


def test_a_packed_weight_counts_as_what_it_stands_for() -> None:
    captured = source_of(MoeModel()).capture()
    packed, _ = Pipeline.parse("quantize(bits=8, group=16, experts=16)").run(captured, Context())
    assert len(packed.weights) > len(captured.weights)
    assert parameters(packed) == parameters(captured)
    assert sizes_of(captured, packed, 0).active_after == sizes_of(captured, captured, 0).active_after


def test_what_an_engine_holds_beside_its_model() -> None:
    """A quantized weight counts by what it stands for."""
    captured = source_of(MoeModel()).capture()
    found, every = sizes_of(captured, captured, 0), inspect_program(captured)
    assert (found.parameters_after, found.active_after) == (every.parameters, every.active_parameters)
    assert found.parameters == every.parameters
    packed, _ = (
        Pipeline.parse("find-moe, fuse-moe, quantize(bits=8, group=16, experts=16)").all_optional().run(captured)
    )
    assert any(w.dtype == torch.uint8 for w in packed.weights.values()) and sizes_of(captured, packed, 0) == found
    by_hand = mixtures.source_of(mixture(Loop)).capture()
    assert sizes_of(by_hand, by_hand, 0).active_after is None


def test_inspect_and_plan_count_the_same_experts() -> None:
    """Biases of experts that a token does not go to are as idle as their matrices (gpt-oss)."""
    found, planned = inspect_program(zoo.captured("gpt_oss")), shape_of_model(zoo.build("gpt_oss"))
    assert found.parameters - found.active_parameters == planned.total - planned.active
