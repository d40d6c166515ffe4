"""`skip-experts`: what few tokens of a sequence chose weighs nothing there; padding, other sequences and single tokens
change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moec import api
from moec.errors import MoecError
from moec.execution.choices import choice
from moec.execution.streaming import StreamingEngine
from moec.execution.trace import trace
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.report.page import markdown
from tests import zoo
from tests.proving import cache
from tests.routers import Block, captured, mixtral, other_input, scaled_per_expert

EXPERTS, TOP_K = 8, 2


def skipping(program: Program, text: str = "skip-experts(alpha=0.7)") -> Program:
    return Pipeline.parse(text).run(program, Context())[0]


def refused(program: Program, text: str) -> MoecError:
    with pytest.raises(MoecError) as caught:
        skipping(program, text)
    assert str(caught.value).count("\n") == 2
    return caught.value


def weights_of(program: Program, sample: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weights and ids `[T, K]` of the first block."""
    found: list[tuple[Tensor, Tensor]] = []
    first = moe_nodes(program)[0]
    trace(
        program,
        sample,
        lambda n, _v, args, kwargs: found.append(choice(n, args, kwargs)[:2]) if n.name == first.name else None,
    )
    return found[0]


def by_hand(weights: Tensor, ids: Tensor, mask: Tensor, alpha: float, renormalize: bool = False) -> Tensor:
    """Sequence by sequence, token by token."""
    wanted = weights.view(*mask.shape, TOP_K).clone()
    for row, chosen, real in zip(wanted, ids.view(*mask.shape, TOP_K), mask.bool(), strict=True):
        counts = torch.bincount(chosen[real].flatten(), minlength=EXPERTS)
        limit = alpha * int(real.sum()) * TOP_K / EXPERTS
        for token, experts in zip(row, chosen, strict=True):
            before = token.sum()
            token[counts[experts] < limit] = 0
            if renormalize and token.sum() > 0:
                token *= before / token.sum()
    return wanted.view(-1, TOP_K)


@pytest.fixture(scope="module")
def source() -> HuggingFaceSource:
    return zoo.source("mixtral")


@pytest.fixture(scope="module")
def model() -> Program:
    return zoo.captured("mixtral")


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("past", [0, 4])
def test_what_weighs_nothing_is_what_few_tokens_chose(
    source: HuggingFaceSource, model: Program, renormalize: bool, past: int
) -> None:
    sample = source.sample({"batch": 3, "sequence": 17, "past_sequence": past})
    sample["attention_mask"][1, : past + 5] = 0
    mask = sample["attention_mask"][:, past:]
    weights, ids = weights_of(model, sample)
    got, same_ids = weights_of(skipping(model, f"skip-experts(alpha=0.7, renormalize={renormalize})"), sample)
    real = mask.bool().flatten()
    assert torch.equal(ids, same_ids) and 0 < (got[real] == 0).float().mean() < 0.5
    want = by_hand(weights, ids, mask, 0.7, renormalize)
    torch.testing.assert_close(got[real], want[real])
    assert not torch.equal(want[real], by_hand(weights, ids, mask, 0.4, renormalize)[real]), (
        "this sample tells no alphas apart"
    )
    assert not torch.equal(want[real], by_hand(weights, ids, torch.ones_like(mask), 0.7, renormalize)[real]), (
        "padding makes no difference"
    )


def test_single_tokens_are_left_as_they_are(source: HuggingFaceSource, model: Program) -> None:
    sample = source.sample({"batch": 3, "sequence": 1, "past_sequence": 5})
    before, after = (
        StreamingEngine(p).run(sample)["logits"] for p in (model, skipping(model, "skip-experts(alpha=1)"))
    )
    assert torch.equal(before, after)
    longer = source.sample({"batch": 3, "sequence": 9, "past_sequence": 5})
    before, after = (
        StreamingEngine(p).run(longer)["logits"] for p in (model, skipping(model, "skip-experts(alpha=1)"))
    )
    assert not torch.allclose(before, after, atol=0.1)


def test_sequences_of_one_call_do_not_see_each_other(source: HuggingFaceSource, model: Program) -> None:
    program = skipping(model)
    sample = source.sample({"batch": 3, "sequence": 9, "past_sequence": 0})
    sample["attention_mask"][:] = 1
    together = StreamingEngine(program).run(sample)["logits"]
    alone = StreamingEngine(program).run({k: v[2:] for k, v in sample.items()})["logits"]
    torch.testing.assert_close(alone[0], together[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flat", [True, False])
def test_any_model_with_sequences(flat: bool) -> None:
    program = captured(Block(mixtral, flat))
    x = other_input()
    weights, ids = weights_of(program, {"x": x})
    got, _ = weights_of(skipping(program), {"x": x})
    want = by_hand(weights, ids, torch.ones(x.shape[:2]), 0.7)
    torch.testing.assert_close(got, want)
    assert 0 < (want == 0).float().mean() < 0.5


def test_routers_that_no_rule_can_say_are_no_obstacle() -> None:
    program = skipping(captured(Block(scaled_per_expert)))
    assert [s.rewrites for s in program.history] == [0, 1]


def test_history_says_that_results_depend_on_the_call(model: Program) -> None:
    program = skipping(model)
    assert program.by_call and program.approximate and not model.by_call
    assert [s.name for s in program.history] == ["find-moe", "skip-experts"]


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("alpha", "what"),
    [("0", "does nothing"), ("0.0", "does nothing"), ("-0.1", "no share"), ("1.5", "no share"), ("True", "no share")],
)
def test_shares_that_mean_nothing(model: Program, alpha: str, what: str) -> None:
    error = refused(model, f"skip-experts(alpha={alpha})")
    assert error.code == "M203" and what in error.what


def test_fused_blocks_are_too_late(model: Program) -> None:
    error = refused(model, "find-moe, fuse-moe, skip-experts")
    assert error.code == "M203" and "before fuse-moe" in error.fix and error.where.startswith("model.layers.0.mlp")


class Flat(Block):
    """Its rows are no sequences."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, x.shape[-1])[1:]
        weights, ids = mixtral(self.gate(rows), rows)
        return torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)  # type: ignore[no-any-return]


def test_rows_that_are_no_sequences() -> None:
    assert "not the tokens" in refused(captured(Flat(mixtral)), "skip-experts").what


class Biased(Block):
    """Weights come before experts that have biases."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        weights, ids = mixtral(self.gate(rows), rows)
        return torch.ops.moec.experts(
            rows, ids, weights, self.w_in, self.w_out, self.w_in[..., 0], self.w_out[..., 0], score_before=True
        )  # type: ignore[no-any-return]


def test_a_weight_of_zero_must_leave_nothing() -> None:
    assert "leaves a bias" in refused(captured(Biased(mixtral)), "skip-experts").what


# ---------------------------------------------------------------------- engines
@pytest.mark.parametrize(
    ("then", "kernel"), [("", "grouped"), (", quantize(bits=4, group=16)", "kernel, weights given")]
)
def test_engines_compute_the_same(mixtral_folder: str, then: str, kernel: str, tmp_path: Path) -> None:
    report = api.compile(
        mixtral_folder, out=tmp_path / "engine", pipeline=f"skip-experts(alpha=0.7){then}", tolerance=20.0
    )
    assert [b["formulation"] for b in report.facts["blocks"]] == [kernel, kernel]
    found = cache(report.proof).consistency
    assert found.by_call and max(w.deviation for w in found.ways) < 1e-3
    assert "each call against the same call in PyTorch" in markdown(report)


@pytest.fixture(scope="module")
def mixtral_folder(mixtral: Path) -> str:
    return str(mixtral)
