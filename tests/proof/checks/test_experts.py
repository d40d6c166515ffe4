"""An expert that no input reached is not proven."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.compiler.compile import compile_source
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.targets.target import Target
from tests.moe_module import EXPERTS, Block, MoeModel, source_of


class Closed(Block):
    """A block whose correction bias never lets expert 3 be chosen."""

    def __init__(self) -> None:
        super().__init__(True)
        self.selection = torch.nn.Parameter(torch.tensor([0.0] * (EXPERTS - 1) + [-1e9]))

    def forward(self, x: Tensor) -> Tensor:
        tensors = self.w_in, self.w_out, self.b_in, self.b_out
        return torch.ops.moec.moe(x, self.router, None, self.selection, *tensors, top_k=2)


def test_a_model_with_an_expert_that_nothing_reaches_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = MoeModel()
    model.blocks[1] = Closed()
    with pytest.raises(MoecError, match="1 of 8 experts were reached by none") as caught:
        compile_source(source_of(model), Options(Target("onnxruntime")), tmp_path / "engine")
    assert caught.value.code == "M104" and "blocks.1: 3" in caught.value.where and not list(tmp_path.iterdir())
