"""The operators of the dialect in a graph."""

from __future__ import annotations

import torch
from torch import fx

from moec.program.program import Program

EXPERTS, MOE, ROUTE = torch.ops.moec.experts.default, torch.ops.moec.moe.default, torch.ops.moec.route.default


def moe_nodes(program: Program) -> list[fx.Node]:
    """The program's mixture-of-experts operators, in graph order."""
    return program.nodes(EXPERTS, MOE)
