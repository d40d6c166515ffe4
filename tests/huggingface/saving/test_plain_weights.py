"""A quantized program with plain weights computes the same, under its own names, and still knows its integers."""

from __future__ import annotations

import pytest
import torch

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.saving.plain_weights import is_quantized, refuse_floats, with_plain_weights
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.dialect_call import DEQUANTIZE
from moec.program.program import Program
from tests.huggingface import packed
from tests.huggingface.conftest import Saved


def quantized(saved: Saved, text: str) -> tuple[HuggingFaceSource, Program, Program]:
    """A source, what was captured from it, and that quantized."""
    source = open_source(str(saved("mixtral")))
    captured = source.capture()
    return source, captured, Pipeline.parse(text).run(captured.clone())[0]


def test_weights_have_their_names_again_and_their_codes(saved: Saved) -> None:
    source, captured, program = quantized(saved, "quantize(bits=4, group=16, symmetric=False, lm_head=16)")
    plain = with_plain_weights(program)
    assert is_quantized(program) and not is_quantized(plain) and not is_quantized(captured)
    assert set(plain.weights) == set(captured.weights)
    known = {name for name, weight in plain.weights.items() if weight.coded is not None}
    assert known == {n.removesuffix("_packed") for n in program.weights if n.endswith("_packed")}
    for name in known:
        codes = plain.weights[name].coded
        assert codes is not None and codes.packed is program.weights[f"{name}_packed"]
        assert codes.scale is program.weights[f"{name}_scale"] and codes.zero is program.weights[f"{name}_zero_point"]
    wanted = packed.logits_of(program.run, source)
    assert torch.equal(packed.logits_of(plain.run, source), wanted)
    assert not torch.equal(packed.logits_of(captured.run, source), wanted), "it was quantized"


def test_the_program_itself_stays_quantized(saved: Saved) -> None:
    _, _, program = quantized(saved, "quantize(bits=8, group=16)")
    before = program.text(), len(program.nodes(DEQUANTIZE))
    with_plain_weights(program)
    assert (program.text(), len(program.nodes(DEQUANTIZE))) == before and before[1]


def test_small_floats_are_refused(saved: Saved) -> None:
    _, captured, integers = quantized(saved, "quantize(bits=8, group=16)")
    for program in (captured, integers):
        refuse_floats(with_plain_weights(program).weights, "this form", "here")
    floats = with_plain_weights(quantized(saved, "quantize(bits=8, format=fp8)")[2])
    with pytest.raises(MoecError, match=r"in this form.*small floats") as caught:
        refuse_floats(floats.weights, "this form", "here")
    assert caught.value.code == "M206" and "format=int" in caught.value.fix
