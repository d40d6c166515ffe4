"""A trained model in 4 bits passes by default, whatever single logits say, and wrong ones don't."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.budgets import OverBudget
from moec.proof.checks.lowering import Lowering
from moec.proof.checks.own_text import OwnTextQuality
from moec.proof.checks.weights import QuantizedWeights
from moec.proof.subject import Subject
from moec.proof.verification import prove
from moec.weights.lazy import scale
from tests.learned import captured, source

CHECKS = (QuantizedWeights, Lowering, OwnTextQuality)


def quantized(options: str) -> Program:
    return Pipeline.parse(f"upcycle(experts=4, top_k=2), quantize({options})").run(captured())[0]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(source(), captured(), quantized("bits=4"))


def own(subject: Subject, engine: EagerEngine) -> OwnTextQuality:
    found = prove(subject, engine, (OwnTextQuality,)).find(OwnTextQuality)
    assert found is not None
    return found


def test_four_bits_pass_whatever_single_logits_say(subject: Subject) -> None:
    proof = prove(subject, EagerEngine(subject.program))
    proof.require()
    assert proof.comparison.worst.deviation > 0.5  # what was allowed before
    assert proof.own_quality is not None and 0 < proof.own_quality.kl_mean < 0.02
    assert "KL divergence" in str(proof) and "4 bits" in str(proof)


def test_the_next_narrower_width_breaks_each_default() -> None:
    for bits, narrower in ((8, 4), (4, 2)):
        program = quantized(f"bits={narrower}")
        step = replace(program.history[-1], widths=(bits,))
        program.history[-1] = step  # it says that it did better
        found = own(Subject(source(), captured(), program), EagerEngine(program))
        assert not found.ok and found.quality.max_kl < found.quality.kl_mean
        assert isinstance(found.error(), OverBudget) and not all(f.ok for f in found.figures())


@pytest.mark.parametrize(("factor", "said"), [(1.05, False), (0.5, False), (3.0, True), (-1.0, True)])
def test_a_wrong_layer_is_refused(subject: Subject, factor: float, said: bool) -> None:
    """By value, and where that is much by what the model says, too."""
    program = subject.program.clone()
    name = next(n for n in program.weights if n.endswith("layers.0.self_attn.o_proj.weight_scale"))
    program.weights[name] = scale(program.weights[name], factor)
    changed = replace(subject, program=program)
    assert own(changed, EagerEngine(program)).ok is not said
    proof = prove(changed, EagerEngine(program), CHECKS)
    weights = proof.find(QuantizedWeights)
    assert weights is not None and not weights.ok and not proof.ok


def test_what_was_asked_for_takes_the_defaults_place(subject: Subject) -> None:
    engine = EagerEngine(subject.program)
    strict, loose = replace(subject, max_kl=1e-9), replace(subject, asked=5.0)
    assert not own(strict, engine).ok and own(strict, engine).quality.min_top1 is None
    assert prove(loose, engine).find(OwnTextQuality) is None and not prove(replace(loose, asked=1e-4), engine).ok
    assert prove(replace(subject, program=captured()), EagerEngine(captured())).find(OwnTextQuality) is None


def test_where_each_token_reads_all_weights_texts_are_short(subject: Subject) -> None:
    found = own(replace(subject, reference="streamed"), EagerEngine(subject.program))
    assert found.ok and found.quality.tokens < 60 and "streamed" in found.quality.reference
    assert found.quality.kl_mean == pytest.approx(own(subject, EagerEngine(subject.program)).quality.kl_mean, rel=2)


class Noisy(EagerEngine):
    """Logits with noise of some nats: kernels that do more than round."""

    def __init__(self, program: Program, by: float) -> None:
        super().__init__(program)
        self.name, self._by = "noisy", by

    def run(self, inputs) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        outputs = super().run(inputs)
        noise = torch.randn(outputs["logits"].shape, generator=torch.Generator().manual_seed(0))
        return {**outputs, "logits": outputs["logits"] + self._by * noise}


def test_inexact_kernels_have_a_budget_beside_their_own_program(subject: Subject) -> None:
    inexact = replace(subject, kernel_deviation=0.3)
    assert own(inexact, Noisy(subject.program, 0.01)).ok
    found = own(inexact, Noisy(subject.program, 0.15))
    assert found.quality.ok and found.kernels is not None and not found.kernels.ok  # within what 4 bits may cost
    with pytest.raises(MoecError, match="noisy differs") as caught:
        found.require()
    assert caught.value.code == "M107" and "accuracy" in caught.value.fix
