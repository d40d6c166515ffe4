"""Numbers in names."""

from __future__ import annotations

import pytest

from moec.planning.layer_names import in_layer, layer_number


@pytest.mark.parametrize(
    ("name", "number", "moved"),
    [
        ("model.layers.3.mlp.up_proj.weight", 3, "model.layers.12.mlp.up_proj.weight"),
        ("transformer.h.0.attn.c_attn.weight", 0, "transformer.h.12.attn.c_attn.weight"),
        ("layers.1.blocks.2.weight", 1, "layers.12.blocks.2.weight"),  # the outermost list
        ("lm_head.weight", None, "lm_head.weight"),
        ("model.players.3.weight", None, "model.players.3.weight"),
    ],
)
def test_the_outermost_number(name: str, number: int | None, moved: str) -> None:
    assert layer_number(name) == number and in_layer(name, 12) == moved
