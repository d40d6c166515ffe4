"""What half precision can't decide is left out of a proof, with all that sees it; everything else is held to the
tolerance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.frontend.export import capture
from moec.program.signature import Input
from moec.proof.compare import Tolerance
from moec.proof.decided_tokens import (
    NOISE,
    ComparedTokens,
    Decided,
    compared_tokens,
    is_causal,
    look,
)
from moec.proof.inputs import reach_decided, reach_experts
from moec.proof.sizes import verification_sizes
from tests.moe_module import EXPERTS, HIDDEN, Block, MoeModel, source_of

HALF, FP16 = torch.float16, Tolerance.of(torch.float16)
IDS = torch.zeros(2, 4, dtype=torch.int64)


def marks(text: str) -> Tensor:
    """`"..x. ...."`: two texts of four tokens, an x for each that is marked."""
    return torch.tensor([[c == "x" for c in row] for row in text.split()])


def compared(text: str, causal: bool, seen: bool = True, **sample: Tensor) -> ComparedTokens:
    return compared_tokens([(marks(text).flatten(), seen)], {"input_ids": IDS, **sample}, "input_ids", causal)


def shown(k: ComparedTokens) -> str:
    return " ".join("".join("x" if c else "." for c in row) for row in k.tokens.tolist())


class Twice(nn.Module):
    """Two routers with nothing between them that mixes tokens, the second with room for two."""

    def forward(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        first, _ = torch.ops.moec.route(logits, None, 9, None, top_k=1)
        second, _ = torch.ops.moec.route(logits * torch.tensor([1.0, 0.0, 0.0]), None, 2, None, top_k=1)
        return input_ids.unsqueeze(-1) + first + second


def test_the_line_of_a_router_hangs_on_what_an_earlier_one_leaves_open() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]] * 8).view(2, 4, 3)
    logits[0, 0, 1] = 1.99
    inputs = {"input_ids": IDS, "logits": logits}
    shapes = {"input_ids": ("batch", "sequence"), "logits": ("batch", "sequence", 3)}
    program = capture(Twice(), inputs, shapes)
    assert shown(look(program, inputs, NOISE[HALF], causal=True)[0]) == "...x xxxx"


def test_later_tokens_see_it_in_a_causal_text_and_all_do_in_another() -> None:
    assert shown(compared("..x. ....", causal=True)) == "xx.. xxxx"
    assert shown(compared("..x. ....", causal=False)) == ".... xxxx"
    assert shown(compared("..x. ....", causal=True, seen=False)) == "xx.x xxxx", (
        "nothing looks at it after the last block"
    )
    assert compared("..x. ....", causal=True, seen=False).texts.tolist() == [False, True]


def test_padding_is_seen_by_no_text() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    past = {"past_key_values.0.key": torch.zeros(2, 1, 0, 3)}
    alone = compared("...x xx..", causal=True, attention_mask=mask, **past)
    assert shown(alone) == "xxx. ..xx" and alone.count == alone.total == 5, (
        "a decoder's padding is not compared, and left out by nobody"
    )
    whole = compared("...x ....", causal=False, attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
    assert shown(whole) == "xx.. xxxx" and whole.total == 8, (
        "without a cache it is compared, and padding may see padding"
    )
    assert shown(compared(".x.. ....", causal=True, attention_mask=mask, **past)) == "x... ..xx"


def test_each_form_of_output_is_cut() -> None:
    past = {
        "past_key_values.0.key": torch.zeros(2, 1, 1, 3),
        "past_key_values.1.conv_state": torch.zeros(2, 3, 4),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
    }
    k = compared("..x. ....", causal=True, **past)
    inputs = [
        Input("past_key_values.0.key", torch.float32, ("batch", 1, "past_sequence", 3)),
        Input("past_key_values.1.conv_state", torch.float32, ("batch", 3, 4)),
    ]
    sample = {"input_ids": IDS, **past}
    assert k.of(torch.arange(8).view(2, 4, 1), sample, "logits", inputs).flatten().tolist() == [0, 1, 5, 6, 7]
    keys = torch.arange(10).view(2, 1, 5, 1).expand(2, 1, 5, 3)
    assert k.of(keys, sample, "present.0.key", inputs)[:, 0, 0].tolist() == [0, 1, 2, 7, 8, 9], (
        "what came in is told as ever"
    )
    state = torch.arange(2)[:, None, None].expand(2, 3, 4)
    assert k.of(state, sample, "present.1.conv_state", inputs)[:, 0, 0].tolist() == [1], "of a text that is whole"
    assert k.of(torch.arange(6).view(2, 3), sample, "pooled", inputs).flatten().tolist() == [3, 4, 5], "pooled"
    assert k.rows(8).tolist() == [True, True, False, False, False, True, True, True]
    assert k.rows(6).tolist() == [False] * 3 + [True] * 3 and not k.rows(5).any(), (
        "rows that are no tokens of the text go with it"
    )


def test_rows_that_are_not_the_texts_tokens_spoil_it_whole() -> None:
    patches = compared_tokens(
        [(torch.tensor([False, True, False, False]), False)], {"image": torch.zeros(2, 3, 8, 8)}, "image", False
    )
    assert shown(patches) == "x. xx" and patches.texts.tolist() == [False, True]
    other = compared_tokens([(torch.tensor([False] * 4 + [True, False]), False)], {"input_ids": IDS}, "input_ids", True)
    assert shown(other) == "xxxx ....", "an encoder's, three a text"


def test_too_few_tokens_or_lost_experts_are_a_problem() -> None:
    assert not Decided("float16", 5e-3, 100, 1000).problem
    assert "99 of 1,000 tokens" in Decided("float16", 5e-3, 99, 1000).problem and Decided("float16", 5e-3, 0, 0).problem
    assert "2 experts" in Decided("float16", 5e-3, 900, 1000, lost=2).problem
    assert str(Decided("float16", 5e-3, 4210, 5002)).startswith("4,210 of 5,002 tokens; the others")
    said = Decided("float32", 1e-5, 65, 385, what="keys").where
    assert said == "wherever rounding can tell keys apart (65 of 385 tokens)", "also on the report's page"
    assert Decided("float16", 5e-3, 3, 4).where == "wherever half precision can tell experts apart (3 of 4 tokens)"
    error = Decided("float16", 5e-3, 3, 1000).error("here")
    assert error is not None and "only 3 of" in error.what and (error.code, error.exit_code) == ("M108", 1)
    assert "--max-kl" in error.fix and "fp32" in error.fix
    assert Decided("float16", 5e-3, 100, 1000).error("here") is None


class Mixed(nn.Module):
    """A block between two ways to look at other tokens."""

    def __init__(self, causal: bool, after: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block, self.causal, self.later = nn.Embedding(50, HIDDEN), Block(True), causal, after

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        x = x + (x.cumsum(1) if self.causal else x.sum(1, keepdim=True))
        x = torch.nn.functional.layer_norm(x + self.block(x), (HIDDEN,))
        return {"y": x.cumsum(1) if self.later else x * 2}


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom_is_found_out(causal: bool) -> None:
    sizes = {"batch": 2, "sequence": 9}
    for after in (True, False):
        source = source_of(Mixed(causal, after))
        program = source.capture()
        assert is_causal(program, source.sample(sizes)) is causal


def tied(every: bool = False) -> MoeModel:
    """Two experts of each block, or all, have nearly the same row of the router; where only one of them is chosen,
    rounding decides which."""
    model = MoeModel(seed=1)
    with torch.no_grad():
        for block in model.blocks:
            if every:
                block.router.copy_(block.router[:1] + 1e-4 * block.router)
            else:
                block.router[1] = block.router[0] + 0.02 * block.router[1]
    return model


def test_tokens_that_are_left_out_reach_no_expert_and_the_search_goes_on() -> None:
    source = source_of(tied())
    program, sizes = source.capture(HALF), verification_sizes(source.inputs)
    _, full = reach_experts(program, source, sizes)
    found = reach_decided(program, source, sizes, HALF, full=full)
    assert found.decided.compared < found.decided.tokens and not found.decided.problem and found.coverage.complete
    assert sum(sum(load.assignments) for load in found.coverage.loads) == 2 * EXPERTS // 2 * found.decided.compared, (
        "two blocks of top-2"
    )
    for sample, k in zip(found.samples, found.tokens, strict=True):
        again, _ = look(program, sample, NOISE[HALF], causal=True)
        assert torch.equal(again.tokens, k.tokens)
