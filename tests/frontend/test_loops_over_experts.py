"""Mixtures that branch on data get a form without branches, where it makes the same of all tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import MoeCall, moe_nodes
from tests.mixtures import VOCABULARY, mixture, source_of
from tests.written import Block, Listed, Sorted


class Biased(Block):
    """Logits have a bias, the choice another."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4)
        del self.weight
        self.register_buffer("correction", torch.randn(4))

    def routed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(rows).softmax(-1)
        ids = (scores + self.correction).topk(2, -1).indices
        return scores.gather(1, ids), ids


class Crowded(Block):
    """Tokens over a number that no sample reaches pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"rules": [{"most": 3000}]}

    def routed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().routed(rows)
        hot = torch.nn.functional.one_hot(ids, 4).sum(1)
        return weights * (hot.cumsum(0).gather(1, ids) <= self.config["rules"][0]["most"]), ids


class Thresholded(Block):
    """A small weight counts nothing."""

    def routed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().routed(rows)
        return weights.masked_fill(weights < 0.6, 0.0), ids


class Swapped(Block):
    """The shared expert sees other tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.shared(x) + self.shared(2 * x)


class ManyTexts(Block):
    """More texts than one tries go another way."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if x.shape[0] > 9 else x)


class OneNumberOfTexts(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if x.shape[0] == 4 and x.shape[1] > 100 else x)


class ManyTokens(Block):
    """So do more tokens, as `len` counts them."""

    most = 600

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        return super().forward(2 * x if len(rows) > self.most else x)


class Unaffordable(Block):
    """A size is held against a number that cannot be tried."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if x.shape[1] > 1 << 30 else x)


class Huge(Block):
    """Tokens far larger than usual make all smaller."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(x.abs().max() > 1e5, x / 100, x))


class Looped(Block):
    """A loop over the experts that some token chose."""

    share = 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 16)
        weights, ids = self.routed(rows)
        out = self.shared(rows)
        for e in ids.unique().tolist():  # type: ignore[no-untyped-call]
            token, nth = torch.where(ids == e)
            if not self.share or len(token) * self.share >= len(rows):
                out[token] += weights[token, nth, None] * self.experts[e](rows[token])
        return out.view_as(x)  # type: ignore[no-any-return]


class Seldom(Looped):
    """An expert with a small share of the tokens does not run; `len` alone counts them."""

    share = 3000


class Counting(nn.Module):
    """An expert that says nothing of rows behind so many."""

    most = 500

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 16)

    def forward(self, rows: Tensor) -> Tensor:
        return self.up(rows) * (torch.arange(rows.shape[0]) < self.most)[:, None]  # type: ignore[no-any-return]


class OfCounting(Block):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Counting() for _ in range(4))


class InPieces(Block):
    """Sizes are asked for, and nothing hangs on them."""

    def routed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if rows.shape[0] <= 512 or rows.shape[0] % 64:
            return super().routed(rows)
        weights, ids = zip(*map(super().routed, rows.chunk(2)), strict=True)
        return torch.cat(weights), torch.cat(ids)


def model_of(block: type[Block]) -> Sorted:
    model = mixture(Sorted)
    torch.manual_seed(1)
    model.block = block()
    return model.eval()  # type: ignore[return-value]


@pytest.mark.parametrize("block", [Block, Biased, InPieces, Looped])
def test_becomes_one_operator_and_equals_the_model(block: type[Block]) -> None:
    source = source_of(model_of(block))
    program, _ = Pipeline.parse("find-moe, fuse-moe").run(source.capture())
    (node,) = moe_nodes(program)
    assert MoeCall(node).fused and (MoeCall(node).selection_bias is not None) == (block is Biased)
    assert {"head.weight", "block.shared.up.weight"} <= set(program.weights)
    for size in ((1, 1), (2, 5), (4, 97)):
        ids = torch.randint(0, VOCABULARY, size, generator=torch.Generator().manual_seed(size[1]))
        want = source.reference()(input_ids=ids)["output"]
        assert torch.allclose(EagerEngine(program)(input_ids=ids)["output"], want, rtol=1e-4, atol=1e-5)


class Named(Block):
    """Its tokens have another name."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows)


def test_the_model_itself_may_be_the_mixture() -> None:
    torch.manual_seed(1)
    model = Named().eval()
    program = moec.capture(model, {"rows": torch.randn(7, 16)}, {"rows": ("tokens", None)})
    rows = torch.randn(20, 16)
    assert torch.allclose(EagerEngine(program)(rows=rows)["output"], model(rows), rtol=1e-4, atol=1e-5)


RULE, PARTS = "no routing rule weighs experts as it does", "its parts, put together, do not make what it makes"


@pytest.mark.parametrize(
    ("block", "condition"),
    [
        (Crowded, RULE), (Thresholded, "tokens go to different numbers of experts"), (Swapped, PARTS),
        (ManyTexts, PARTS), (OneNumberOfTexts, PARTS), (ManyTokens, PARTS),
        (Unaffordable, "it branches on a number of tokens that is too large to be tried"), (Huge, PARTS),
        (Seldom, RULE), (OfCounting, PARTS),
    ],
)  # fmt: skip
def test_what_does_something_else_is_refused_with_the_condition_that_failed(block: type[Block], condition: str) -> None:
    with pytest.raises(MoecError) as caught:
        source_of(model_of(block)).capture()
    assert caught.value.code == "M207" and "in forward: " in caught.value.where
    assert f"block has no form without that branch, for {condition}" in caught.value.what


def test_a_loop_in_the_model_itself_is_refused() -> None:
    with pytest.raises(MoecError, match="data-dependent"):
        source_of(mixture(Listed)).capture()


def test_the_users_own_module_stays_as_it_is() -> None:
    model = model_of(Block)
    source_of(model).capture()
    assert "forward" not in vars(model.block)
