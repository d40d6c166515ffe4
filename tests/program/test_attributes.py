"""Tensors under dotted names."""

from __future__ import annotations

import torch
from torch import nn

from moec.program.attributes import attach, detach


def test_what_is_attached_has_its_name_and_can_be_detached() -> None:
    root, weight = nn.Module(), nn.Parameter(torch.ones(2))
    attach(root, "layers.0.w", weight)
    attach(root, "layers.0.table", torch.zeros(3))
    assert root.get_parameter("layers.0.w") is weight and list(dict(root.named_buffers())) == ["layers.0.table"]
    detach(root, "layers.0.w")
    assert not list(root.parameters()) and root.get_buffer("layers.0.table").shape == (3,)
