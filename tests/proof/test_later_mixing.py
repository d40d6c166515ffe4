"""What follows a block looks at one token at a time, or at several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.program.moe_call import moe_nodes
from moec.proof.later_mixing import mixes_after
from tests.moe_module import HIDDEN, Block, MoeModel, source_of


class Then(nn.Module):
    """A block, a norm, and a sum over tokens or a product."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block, self.several = nn.Embedding(50, HIDDEN), Block(True), several

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        x = torch.nn.functional.layer_norm(x + self.block(x), (HIDDEN,))
        return {"y": x.cumsum(1) if self.several else x * 2}


@pytest.mark.parametrize("several", [True, False])
def test_a_sum_over_tokens_is_told_from_a_product(several: bool) -> None:
    assert mixes_after(moe_nodes(source_of(Then(several)).capture())[0]) is several


def test_nothing_mixes_after_the_last_block_of_a_plain_model() -> None:
    assert not any(mixes_after(node) for node in moe_nodes(source_of(MoeModel()).capture()))
