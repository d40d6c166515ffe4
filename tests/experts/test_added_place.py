"""A block that gets an expert: which can, and what its weights are then."""

from __future__ import annotations

import pytest
import torch

from moec.experts.added_place import AddedPlace, why_not
from moec.experts.added_row import Read
from moec.experts.cut import MoeBlock, find_block, names_of
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.linear import find_linears
from tests import zoo


def mixture(name: str) -> tuple[Program, MoeBlock]:
    program, _ = Pipeline.parse("find-moe").run(zoo.captured(name, cache=False), Context())
    return program, find_block(moe_nodes(program)[0], find_linears(program))


@pytest.mark.parametrize(
    ("name", "words"), [("mixtral", ""), ("olmoe", "scores of all experts"), ("deepseek_v3", "highest logits choose")]
)
def test_a_block_says_why_it_cannot_get_an_expert(name: str, words: str) -> None:
    why = why_not(mixture(name)[1])
    assert words in why and bool(why) == bool(words)


def test_a_row_and_an_expert_stand_behind_the_others() -> None:
    program, block = mixture("mixtral")
    place = AddedPlace.like_its_own(program, block)
    assert not why_not(block, place.ffn)
    names = names_of(block)
    before = {name: program.weights[entered].load() for name, entered in names.items()}
    place.rewrite("test")
    x = (
        torch.randn(3, 200, place.ffn.hidden, generator=torch.Generator().manual_seed(0))
        + torch.eye(3)[:, :1, None] * 3
    )
    text = Read(x[0], [x[1], x[2]])
    place.fit(text, text, 1e-3)
    program.check()
    after = {name: program.weights[entered].load() for name, entered in place.names.items()}
    assert before.keys() == after.keys() == {"w_in", "w_out", "router"}
    for name, value in after.items():
        assert torch.equal(value[:-1], before[name]) and value.dtype == before[name].dtype
    assert torch.equal(after["w_out"][-1], place.ffn.w_out.load())
    assert place.row is not None and torch.equal(after["router"][-1], place.row.weight)
    assert place.facts() == {"module": block.module, "right": place.row.right, "kept": place.row.kept}
