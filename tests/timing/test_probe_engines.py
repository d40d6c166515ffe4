"""What the probe times is what moec emits, and what a config says of it is true."""

from __future__ import annotations

from pathlib import Path

import torch

from moec.huggingface.shape import shape_of
from moec.program.decoder_signature import cache_inputs
from moec.timing.probe_engines import Block, Chain, Gates, Mixtures, Small, chain, gates


def test_a_chain_multiplies_by_each_of_its_matrices() -> None:
    model, x = Chain(32, 3), torch.randn(2, 32)
    values = [m.weight for m in model.matrices]
    assert len({tuple(v.flatten()[:4].tolist()) for v in values}) == 3
    assert torch.allclose(model(x), x @ values[0].T @ values[1].T @ values[2].T, atol=1e-5)
    assert len(chain(32, 3)().nodes(torch.ops.aten.linear.default)) == 3


def test_gates_hold_no_product() -> None:
    model, x = Gates(8, 2), torch.randn(3, 16)
    gate, up = (0.5 * x).chunk(2, -1)
    once = x + torch.cat([torch.nn.functional.silu(gate) * up, gate], -1)
    assert torch.allclose(Gates(8, 1)(x), once) and model.numbers == 160
    assert gates(model)().nodes(torch.ops.aten.linear.default, torch.ops.aten.mm.default) == []


def test_loads_are_those_that_the_operator_routes() -> None:
    block = Block(16, 8, 4, 2)
    model, x = Mixtures(block, 2), torch.randn(5, 16)
    loads = model.loads(x)
    assert loads.shape == (2, 4) and loads.sum(1).tolist() == [10, 10] and block.expert == 3 * 16 * 8
    for router, load in zip(model.routers, loads, strict=True):
        _, ids = torch.ops.moec.route(x @ router.T, top_k=2)
        assert torch.bincount(ids.flatten(), minlength=4).tolist() == load.tolist()


def test_no_expert_that_is_counted_is_left_out() -> None:
    """QMoE passes by what weighs less than 1e-8 of a token: with logits of variance 1024 that was every fourth row."""
    model, x = Mixtures(Block(1024, 1, 32, 8), 1), torch.randn(64, 1024)
    weights = (x @ model.routers[0].T).topk(8, -1).values.softmax(-1)
    assert weights.min() > 1e-3


def test_a_small_decoder_is_read_as_its_config_says(tmp_path: Path) -> None:
    small = Small(1, 2, normed=True, heads=4, head_size=16)
    program = small.program(tmp_path / "small")
    assert len(cache_inputs(program.inputs)) == 2
    shape = shape_of(str(tmp_path / "small"))
    plain = [t for t in shape.tensors if t.part in ("attention", "dense FFN") and len(t.shape) == 2]
    assert sum(t.count for t in plain) == small.matrices and sum(".q_norm." in t.name for t in shape.tensors) == 1
