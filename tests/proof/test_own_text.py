"""Texts that a model writes itself tell what a changed one says differently."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.frontend.module_source import ModuleSource
from moec.program.decoder_signature import LOGITS
from moec.proof.budgets import Budget
from moec.proof.own_text import CONTINUED, NEAR, PROMPT, TEXTS, OwnText, is_language_model, judge, write_own_text
from tests.learned import captured, source
from tests.moe_module import MoeModel, source_of
from tests.zoo import captured as zoo_program


class Altered(EagerEngine):
    """Logits changed by a function."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__(captured())
        self._change = change

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = super().run(inputs)
        return {**outputs, LOGITS: self._change(outputs[LOGITS])}


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


class Turned(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.roll(1, -1)


BUDGET = Budget(0.05, 0.9, "4 bits")


@pytest.fixture(scope="module")
def text() -> OwnText:
    return write_own_text(source().reference(), source(), seed=0)


def test_the_model_goes_on_with_what_it_finds_likeliest(text: OwnText) -> None:
    assert text.ids.shape == (TEXTS, PROMPT + CONTINUED) and text.prompt == PROMPT
    said = EagerEngine(captured())(input_ids=text.ids)[LOGITS].argmax(-1)
    assert torch.equal(said[:, PROMPT - 1 : -1], text.ids[:, PROMPT:])  # a cache makes no difference
    assert torch.equal(text.ids[:, 0], torch.ones(TEXTS, dtype=torch.int64))  # what begins every text
    assert torch.equal(text.ids, write_own_text(source().reference(), source(), seed=0).ids)
    assert not torch.equal(text.ids, write_own_text(source().reference(), source(), seed=1).ids)


def test_the_same_model_costs_nothing(text: OwnText) -> None:
    found = judge(source().reference(), EagerEngine(captured()), text, BUDGET)
    assert found.ok and found.kl_mean < 1e-9 and found.top1 == 1 and found.tokens == TEXTS * (CONTINUED + 1)


@pytest.mark.parametrize(
    "change", [Times(0.5), Times(1.5), Times(-1.0), Turned(), Times(math.nan), Times(math.inf)], ids=repr
)
def test_what_says_other_things_is_refused(text: OwnText, change: nn.Module) -> None:
    found = judge(source().reference(), Altered(change), text, BUDGET)
    assert not found.ok and "allowed" in " ".join(found.problems)


def test_a_likeliest_token_that_differs_counts_where_the_model_is_sure() -> None:
    text, sure, unsure = (
        OwnText(torch.zeros(1, 1, dtype=torch.int64), 1),
        torch.tensor([[[2.0, 0, -9]]]),
        torch.tensor([[[0.05, 0, -9]]]),
    )
    for logits, near in ((sure, 0.0), (unsure, 1.0)):
        found = judge(Says(logits), Says(logits[..., [1, 0, 2]]), text, BUDGET)
        assert found.top1 == 0 and found.near == near and bool(found.problems) is not bool(near)
    assert NEAR == 0.1


class Says(EagerEngine):
    def __init__(self, logits: Tensor) -> None:
        self.name, self.inputs, self._logits = "says", (), logits

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {LOGITS: self._logits}


def test_of_a_model_whose_logits_are_no_numbers_nothing_is_said(text: OwnText) -> None:
    with pytest.raises(MoecError) as caught:
        judge(Altered(Times(math.nan)), EagerEngine(captured()), text, BUDGET)
    assert caught.value.code == "M105"


def test_who_writes_text() -> None:
    assert is_language_model(captured()) and is_language_model(source_of(MoeModel()).capture())
    assert not is_language_model(zoo_program("bert")) and not is_language_model(zoo_program("vit"))


def test_without_a_cache_and_in_other_sizes() -> None:
    source = source_of(MoeModel())
    text = write_own_text(source.reference(), source, 0, lambda sizes: sizes["batch"] < 3)
    assert text.ids.shape == (2, PROMPT + CONTINUED)
    assert write_own_text(source.reference(), source, 0, streamed=True).ids.shape[1] < PROMPT + CONTINUED
    fixed = ModuleSource(MoeModel(), {"input_ids": torch.zeros(1, 5, dtype=torch.int64)}, {"input_ids": (None, None)})
    assert write_own_text(fixed.reference(), fixed, 0).ids.shape == (1, 5)
