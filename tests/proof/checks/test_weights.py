"""A quantized weight that is wrong ends the proof, whatever the outputs say of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.pipeline.pipeline import Pipeline
from moec.proof.checks.weights import QuantizedWeights
from moec.proof.subject import Subject
from moec.proof.verification import prove
from moec.weights.lazy import scale
from tests.zoo import captured, source

PASS = "quantize(bits=8, group=16)"


def test_a_scale_that_moves_no_output_is_found_by_value() -> None:
    program, _ = Pipeline.parse(PASS).run(captured("llama"))
    subject = Subject(source("llama"), captured("llama"), program)
    right = prove(subject, EagerEngine(program))
    right.require()
    name = next(n for n in program.weights if n.endswith("layers.1.mlp.down_proj.weight_scale"))
    program.weights[name] = scale(program.weights[name], 1.02)
    proof = prove(replace(subject, program=program), EagerEngine(program))
    assert proof.own_quality is not None and proof.own_quality.ok and not proof.ok  # logits are flat
    with pytest.raises(MoecError, match="further from what it stands for") as caught:
        proof.require()
    assert caught.value.code == "M102" and "layers.1.mlp.down_proj" in caught.value.where


def test_without_quantization_there_is_nothing_to_look_at() -> None:
    assert QuantizedWeights.of(captured("llama"), captured("llama")) is None


def test_what_is_not_found_is_said() -> None:
    program, _ = Pipeline.parse(PASS).run(captured("llama"))
    found = QuantizedWeights.of(program, captured("llama"))
    assert found is not None and not found.unknown and len(found.worst) == 8 < found.compared
    assert (
        "1 not compared" in str(replace(found, unknown=("w",)))
        and replace(found, unknown=("w",)).figures()[-1].ok is None
    )
