"""Nodes know the modules that they came from."""

from __future__ import annotations

import torch

from moec.program.moe_call import moe_nodes
from moec.program.provenance import module_path, module_paths
from tests.moe_module import MoeModel, source_of


def test_nodes_know_their_modules() -> None:
    program = source_of(MoeModel()).capture()
    assert [module_path(n) for n in moe_nodes(program)] == ["blocks.0", "blocks.1"]
    norm = program.nodes(torch.ops.aten.layer_norm.default)[1]
    assert module_paths(norm) == ["", "norms.1"]
