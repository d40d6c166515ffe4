"""Programs in memory as models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.frontend.program_source import ProgramSource
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.progress import Progress
from tests import zoo


def upcycled() -> Program:
    return Pipeline.parse("upcycle(experts=2, top_k=1)").run(zoo.captured("llama"))[0]


def test_a_program_has_the_inputs_and_values_of_the_model_that_it_was_captured_from() -> None:
    program = upcycled()
    source, home = open_source(program), program.original.source
    assert isinstance(source, ProgramSource)
    assert source.inputs == home.inputs and source.domains == home.domains and source.facts() == home.facts()
    assert "upcycle" in source.account().lines()[1]


def test_it_is_its_own_reference_and_what_was_done_is_no_step_any_more() -> None:
    program = upcycled()
    program.history[0] = program.history[0].__class__("upcycle", 2, "approximate", widths=(4,))
    source = ProgramSource(program)
    captured, sample = source.capture(), source.sample({"batch": 2, "sequence": 7})
    assert not captured.approximate and captured.history[0].widths == () and program.approximate
    found, want = captured.run(**sample)["logits"], source.reference()(**sample)["logits"]
    assert torch.allclose(found, want, atol=1e-6)


def test_the_hash_follows_the_weights() -> None:
    module = upcycled().module(trainable=True)
    before, same = open_source(module).hashes, open_source(module).hashes
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert before == same != open_source(module).hashes


def test_another_precision_and_other_inputs_are_refused_with_a_way_out() -> None:
    with pytest.raises(MoecError, match="save_hf") as caught:
        ProgramSource(upcycled()).capture(torch.float16)
    assert caught.value.code == "M208"
    for given in (
        {"inputs": {"input_ids": torch.zeros(2, 2)}},
        {"inputs": ["input_id=batch,sequence:int64"]},
        {"dynamic": {"input_ids": ("batch", None)}},
        {"cache": False},
    ):
        for model in (upcycled(), open_source(upcycled())):
            with pytest.raises(MoecError) as caught:
                open_source(model, **given)
            assert caught.value.code == "M201" and caught.value.where == next(iter(given))
            assert "cache" in given or "input_ids is there already" in caught.value.fix


def test_a_program_of_a_bare_module_has_no_checkpoint(tmp_path: Path) -> None:
    program = upcycled()
    program.original = program.original.__class__()
    source, out = ProgramSource(program), tmp_path / "out"
    for write in (
        lambda: source.save_checkpoint(program, out, "compressed-tensors", Progress()),
        lambda: source.save_gguf(program, out, "f16"),
    ):
        with pytest.raises(MoecError, match="only a model of the transformers library") as caught:
            write()
        assert caught.value.code == "M206" and not out.exists()
