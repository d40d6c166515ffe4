"""The quality of an engine on real text, beside the untouched model: perplexity, KL divergence, top-1 agreement, and an
error budget in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.divergence import divergence
from moec.execution.engine import Engine
from moec.program.decoder_signature import LOGITS, require_text_model, text_inputs
from moec.proof.agreement import Agreement
from moec.proof.damage_by_cause import ExpertShift
from moec.proof.digits import at_most, four_digits
from moec.proof.exam import Exam
from moec.shown import figure_of


@dataclass(frozen=True)
class Quality:
    """What an engine says on a text, beside the untouched model.

    Attributes:
        exam, sha256: the text, its hash, and what is allowed.
        windows, tokens: how many windows were read, and how many tokens in them were predicted; all figures are about
            these.
        perplexity_reference, perplexity_engine: `exp` of the mean negative log-likelihood. likelihood_loss: the
            difference of these means in nats a token, so that `exp(likelihood_loss)` is the ratio of the perplexities.
        kl_mean, kl_p99, kl_max: of KL(reference ‖ engine) over the tokens, in nats, in float64.
        top1: share of the tokens for which both find the same token the likeliest.
        agreement: the inside, see `moec.proof.agreement`. shift: what of the damage is the weights' and what the
            routes', see `moec.proof.damage_by_cause`.
        engine_bytes, source_bytes: of the engine's folder, without its reports, and of the source's weights.
    """

    exam: Exam
    sha256: str
    windows: int
    tokens: int
    perplexity_reference: float
    perplexity_engine: float
    likelihood_loss: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1: float
    agreement: Agreement | None = None
    engine_bytes: int = 0
    source_bytes: int = 0
    shift: ExpertShift | None = None

    @property
    def perplexity_ratio(self) -> float:
        """The engine's perplexity over the untouched model's."""
        return _exp(self.likelihood_loss)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is not allowed, in words; a figure that is not a number is never allowed."""
        exam, found = self.exam, []
        if exam.max_kl is not None and not at_most(self.kl_mean, exam.max_kl):
            found.append(f"mean KL divergence {self.kl_mean:.4g} nats a token, {figure_of(exam.max_kl)} allowed")
        if exam.max_perplexity_ratio is not None and not self._keeps_ratio(exam.max_perplexity_ratio):
            found.append(
                f"perplexity {self.perplexity_ratio:.4g} times the untouched model's, "
                f"{figure_of(exam.max_perplexity_ratio)} allowed"
            )
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether the budget is kept; without one, whether the figures are numbers at all."""
        return not self.problems and math.isfinite(self.kl_mean)

    def _keeps_ratio(self, bound: float) -> bool:
        return self.perplexity_ratio <= bound and _exp(four_digits(self.likelihood_loss)) <= bound

    def budgets(self) -> tuple[tuple[str, str, bool], ...]:
        """Of each budget: its name, the figure beside what is allowed, and whether that is kept."""
        exam = self.exam
        kept = exam.max_kl is None or at_most(self.kl_mean, exam.max_kl)
        kept_ratio = exam.max_perplexity_ratio is None or self._keeps_ratio(exam.max_perplexity_ratio)
        found = (
            ("mean KL divergence", self.kl_mean, exam.max_kl, kept),
            ("perplexity ratio", self.perplexity_ratio, exam.max_perplexity_ratio, kept_ratio),
        )
        return tuple(
            (name, f"{figure:.4g}, no bound given", math.isfinite(figure))
            if bound is None
            else (name, f"{figure:.4g}, {figure_of(bound)} allowed", within)
            for name, figure, bound, within in found
        )

    @property
    def short(self) -> str:
        """What decides, in a few words: `KL 0.0012 nats of 0.05, perplexity x 1.0012`."""
        exam = self.exam
        kl = f"KL {self.kl_mean:.2g} nats" + ("" if exam.max_kl is None else f" of {figure_of(exam.max_kl)}")
        bound = "" if exam.max_perplexity_ratio is None else f" of {figure_of(exam.max_perplexity_ratio)}"
        return f"{kl}, perplexity x {self.perplexity_ratio:.4f}{bound}"

    def rows(self) -> list[tuple[str, str]]:
        """The figures as a table: what, how much."""
        figures = [
            (
                "perplexity",
                (
                    f"{self.perplexity_engine:.4f}, untouched {self.perplexity_reference:.4f}, ratio "
                    f"{self.perplexity_ratio:.4f}"
                ),
            ),
            ("KL divergence, nats a token", f"mean {self.kl_mean:.3g}, 99 % {self.kl_p99:.3g}, max {self.kl_max:.3g}"),
            ("top-1 agreement", f"{100 * self.top1:.2f} %"),
        ]
        blocks = self.agreement.blocks if self.agreement else ()
        if blocks:
            shared, worst = sum(b.shared for b in blocks) / len(blocks), min(blocks, key=lambda b: b.shared)
            same = sum(b.identical for b in blocks) / len(blocks)
            least = f", least in {worst.module}" if worst.shared < shared else ""
            figures.append(
                ("router agreement", f"{100 * shared:.2f} % of the choices, {100 * same:.2f} % of the sets{least}")
            )
        if self.shift:
            figures.append(("KL divergence by its cause", str(self.shift)))
        if self.engine_bytes:
            figures.append(("bytes on disk", f"{self.engine_bytes:,}, source {self.source_bytes:,}"))
        return figures

    def __str__(self) -> str:
        head = (
            f"{self.exam.text}: {self.tokens:,} tokens predicted in {self.windows} windows of up to {self.exam.window}"
        )
        lines = [head, *(f"  {name:<28} {figure}" for name, figure in self.rows())]
        for b in self.agreement.blocks if self.agreement else ():
            lines.append(
                f"  {b.module:<28} router: {100 * b.shared:.2f} % of the choices, {100 * b.identical:.2f} % of the sets"
            )
        for layer in self.agreement.layers if self.agreement else ():
            lines.append(f"  {layer.module:<28} error {layer.relative:.3g}")
        return "\n".join([*lines, *(f"  NOT ALLOWED: {p}" for p in self.problems)])


def measure(reference: Engine, engine: Engine, windows: Iterable[Tensor], exam: Exam, sha256: str = "") -> Quality:
    """Run both engines over windows of tokens, and compare what they say of each next token.

    Args:
        reference: the untouched model. engine: what is judged.
        windows: int64 `[B, S]`, one batch at a time; the logits of one batch are held, and one row of them in float64.
        exam, sha256: what is recorded with the figures.

    Raises:
        MoecError: M211 when one of them is no causal language model, or their vocabularies differ; M105 when the
            untouched model's logits are not numbers.
    """
    rows, count = list[Tensor](), 0
    for ids in windows:
        want, got = (_logits(e, ids) for e in (reference, engine))
        if want.shape != got.shape:
            raise MoecError(
                "M211",
                f"logits {list(got.shape)} instead of {list(want.shape)}",
                engine.name,
                "compare engines of one vocabulary",
            )
        if not count:
            _require_causal(reference, ids, want)
        rows += [_row(*row) for row in zip(want, got, ids, strict=True)]
        count += len(ids)
    nll, nll_engine, kl, top1 = torch.cat(rows, dim=1)
    if not nll.isfinite().all():
        raise MoecError(
            "M105",
            "the untouched model's logits are NaN or infinite on this text",
            reference.name,
            "look at its weights with `moec inspect`",
        )
    loss, own = float((nll_engine - nll).mean()), float(nll.mean())
    kls = float(kl.mean()), float(kl.nan_to_num(math.inf, math.inf).quantile(0.99)), float(kl.max())
    return Quality(exam, sha256, count, len(nll), _exp(own), _exp(own + loss), loss, *kls, float(top1.mean()))


def _logits(engine: Engine, ids: Tensor) -> Tensor:
    outputs = engine(**text_inputs(engine.inputs, ids))
    require_text_model(engine.inputs, [*outputs], engine.name)
    logits: Tensor = outputs[LOGITS]
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        fix = f"--text is for causal language models, whose {LOGITS} are [batch, sequence, vocabulary]"
        raise MoecError("M211", f"logits {list(logits.shape)} for tokens {list(ids.shape)}", engine.name, fix)
    return logits


def _require_causal(engine: Engine, ids: Tensor, logits: Tensor) -> None:
    """Raise M211 when what is said after a text's first half depends on the second: such a model has no perplexity."""
    half = ids.shape[1] // 2
    moved = (
        (_logits(engine, ids[:, :half])[:, -1] - logits[:, half - 1]).abs().median() if half else 0
    )  # a router's near tie may move some
    if moved > 0.01 * logits.std():
        raise MoecError(
            "M211", "it looks at later tokens to predict a token", engine.name, "--text is for causal language models"
        )


def _row(want: Tensor, got: Tensor, ids: Tensor) -> Tensor:
    """Of one window, `[4, S-1]` in float64: both negative log-likelihoods, KL divergence, and whether the likeliest
    token is the same."""
    p, q = (logits[:-1].double().log_softmax(-1) for logits in (want, got))
    target = ids[1:, None]
    same = (p.argmax(-1) == q.argmax(-1)).double()
    nll = [-log.gather(-1, target)[:, 0] for log in (p, q)]
    return torch.stack([*nll, divergence(p, q), same])


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf if not math.isnan(x) else x
