"""Parameters are those that the untouched model has, whatever form they are stored in."""

from __future__ import annotations

from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.report.size import parameters, sizes_of
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
