"""The figures are those of the definitions, computed another way; a budget is kept or not, and NaN never keeps one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.program.decoder_signature import require_text_model, text_inputs
from moec.program.program import Input
from moec.proof.checks.text import TextQuality
from moec.proof.exam import Exam
from moec.proof.quality import Quality, measure
from tests.moe_module import VOCAB, MoeModel, source_of

EXAM = Exam("text", window=12)


class Says(Engine):
    """Logits by a table: what is said after a token depends on that token, and with `ahead`, on the next one."""

    def __init__(self, table: Tensor, ahead: bool = False) -> None:
        self.name, self.inputs, self.outputs = (
            "says",
            (Input("input_ids", torch.int64, ("batch", "sequence")),),
            ("logits",),
        )
        self._table, self._ahead = table, ahead

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = inputs["input_ids"]
        return {"logits": self._table[ids.roll(-1, 1) if self._ahead else ids]}


def windows(high: int = VOCAB, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, high, shape, generator=generator) for shape in ((3, 12), (3, 12), (1, 5))]


def quality(**changes: object) -> Quality:
    plain = Quality(EXAM, "ab", 7, 70, 20.0, 21.0, math.log(1.05), 0.02, 0.3, 1.5, 0.97)
    return replace(plain, **changes)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- figures
def test_the_perplexity_is_that_of_transformers(mixtral: Path) -> None:
    from transformers import AutoModelForCausalLM

    source, model = open_source(str(mixtral)), AutoModelForCausalLM.from_pretrained(mixtral)
    found = measure(source.reference(), EagerEngine(source.capture()), windows(96), EXAM)
    with torch.no_grad():
        losses = [(float(model(ids, labels=ids).loss), ids[:, 1:].numel()) for ids in windows(96)]
    tokens = sum(n for _, n in losses)
    assert found.perplexity_reference == pytest.approx(math.exp(sum(loss * n for loss, n in losses) / tokens), rel=1e-4)
    assert (found.tokens, found.windows) == (tokens, 7)
    other = measure(source.reference(), EagerEngine(source.capture()), windows(96, seed=1), EXAM)
    assert found.perplexity_reference != pytest.approx(other.perplexity_reference, rel=1e-4)  # the mutant: another text


def test_an_engine_that_says_the_same_is_perfect_and_another_is_not() -> None:
    source = source_of(MoeModel())
    same = measure(source.reference(), EagerEngine(source.capture()), windows(), EXAM)
    assert same.kl_max < 1e-6 and same.top1 == 1 and same.perplexity_ratio == pytest.approx(1, abs=1e-6) and same.ok
    other = measure(source.reference(), source_of(MoeModel(seed=1)).reference(), windows(), EXAM)
    assert other.kl_mean > 0.1 and other.top1 < 0.9 and other.kl_mean < other.kl_p99 <= other.kl_max


def test_the_figures_follow_their_definitions() -> None:
    p, q = (
        torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]),
        torch.tensor([[0.3, 0.5, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]),
    )
    found = measure(
        Says(p.log()), Says(q.log() + 3), [torch.tensor([[0, 1, 0, 2, 2]])], EXAM
    )  # what is added to all logits says nothing
    kl = 0.5 * math.log(0.5 / 0.3) + 0.3 * math.log(0.3 / 0.5)  # after token 0, at two of the four places
    assert (
        found.kl_mean == pytest.approx(kl / 2, rel=1e-5)
        and found.kl_max == pytest.approx(kl, rel=1e-5)
        and found.top1 == 0.5
    )
    want = -(math.log(0.3) + math.log(0.6) + math.log(0.2) + math.log(0.6)) / 4
    got = -(math.log(0.5) + math.log(0.6) + math.log(0.2) + math.log(0.6)) / 4
    assert found.perplexity_reference == pytest.approx(
        math.exp(want), rel=1e-5
    ) and found.perplexity_engine == pytest.approx(math.exp(got), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(math.exp(got - want), rel=1e-5)


def test_a_token_that_is_ruled_out_costs_nothing_unless_only_the_engine_does_so() -> None:
    never = torch.tensor([[0.0, 1.0, -torch.inf]]).expand(3, 3)
    some = torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3)
    ids = [torch.tensor([[0, 1, 0, 1]])]
    assert 0 < measure(Says(never), Says(some), ids, EXAM).kl_mean < 1
    broken = measure(Says(some), Says(never), ids, EXAM)
    assert broken.kl_mean == math.inf and not broken.ok


# ---------------------------------------------------------------------- budgets
def test_a_budget_is_kept_or_not() -> None:
    kept, broken = (
        quality(exam=replace(EXAM, max_kl=0.02, max_perplexity_ratio=1.06)),
        quality(exam=replace(EXAM, max_kl=0.019)),
    )
    TextQuality(kept).require()
    assert (
        kept.ok
        and not broken.ok
        and "0.019 allowed" in broken.problems[0]
        and "NOT ALLOWED" in str(broken)
        and "NOT" not in str(kept)
    )
    assert len(quality(exam=replace(EXAM, max_kl=0.01, max_perplexity_ratio=1.01)).problems) == 2
    with pytest.raises(MoecError, match=r"0\.02 nats") as caught:
        TextQuality(broken).require()
    assert caught.value.code == "M107" and caught.value.exit_code == 1


def test_what_is_not_a_number_keeps_no_budget() -> None:
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    found = measure(
        Says(table), Says(table * torch.nan), windows(5), replace(EXAM, max_kl=1e9, max_perplexity_ratio=1e9)
    )
    assert len(found.problems) == 2 and not found.ok and not replace(found, exam=EXAM).ok
    with pytest.raises(MoecError) as caught:
        measure(Says(table * torch.nan), Says(table), windows(5), EXAM)
    assert caught.value.code == "M105"


# ---------------------------------------------------------------------- models
def test_only_causal_language_models_are_judged() -> None:
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    measure(Says(table), Says(table), windows(), EXAM)
    for wrong, says in ((Says(table, ahead=True), "later tokens"), (Says(table[:, 0]), r"logits \[3, 12\]")):
        with pytest.raises(MoecError, match=says) as caught:
            measure(wrong, wrong, windows(), EXAM)
        assert caught.value.code == "M211"
    with pytest.raises(MoecError, match="instead of"):
        measure(Says(table), Says(table[:, :40]), windows(), EXAM)


def test_signatures_of_language_models() -> None:
    ids, mask, types = (
        Input(name, torch.int64, ("batch", "sequence")) for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    require_text_model([ids, mask], ["logits"], "m")
    for inputs, outputs in (([ids, types], ["logits"]), ([mask], ["logits"]), ([ids], ["last_hidden_state"])):
        with pytest.raises(MoecError) as caught:
            require_text_model(inputs, outputs, "m")
        assert caught.value.code == "M211"


def test_what_a_model_is_given(mixtral: Path) -> None:
    given = text_inputs(open_source(str(mixtral)).inputs, torch.tensor([[5, 6, 7]]))
    assert (
        given["attention_mask"].tolist() == [[1, 1, 1]]
        and given["past_key_values.1.key"].shape[2] == 0
        and len(given) == 6
    )
    narrow = Input("input_ids", torch.int32, ("batch", "sequence"))
    assert text_inputs([narrow], torch.tensor([[5]]))["input_ids"].dtype == torch.int32
