"""Each engine, where it is installed, writes the text of moec's own engine from each form that it reads; from a spoiled
file it writes another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from moec import open_source
from moec.huggingface.saving.save import save_hf
from moec.pipeline.pipeline import Pipeline
from tests.command_line import Cli
from tests.huggingface.gguf import spoken
from tests.serving.engines import SERVING, Refused, Serving
from tests.serving.forms import FORMS, PROMPT, SIZES, TOKENS, Form, spoil, text_of

pytestmark = [pytest.mark.serving, pytest.mark.slow]
PAIRS = [pytest.param(e, f, id=f"{e.name}: {f.title}") for f in FORMS for e in SERVING if f.is_for(e)]


@pytest.mark.parametrize(("engine", "form"), PAIRS)
def test_it_writes_the_same_text(engine: Serving, form: Form, tmp_path: Path, cli: Cli) -> None:
    if engine.installed() is None:
        pytest.skip(f"{engine.name} is not installed: {engine.install}")
    ours, theirs = form.write(cli, tmp_path)
    text = text_of(cli, ours)
    assert len(text) > 20
    if engine.name in dict(form.refused):
        with pytest.raises(Refused, match=dict(form.refused)[engine.name]):
            engine.write(theirs, PROMPT, TOKENS)
        return
    assert engine.write(theirs, PROMPT, TOKENS) == text
    if form.kind != "engine":
        spoil(theirs)
        assert engine.write(theirs, PROMPT, TOKENS) != text


def test_vllm_writes_the_programs_text_from_modelopts_fp8(tmp_path: Path) -> None:
    """No engine of moec's runs small floats on a CPU, so it is the program in PyTorch that says the text."""
    (vllm,) = [engine for engine in SERVING if engine.name == "vLLM, CPU"]
    if vllm.installed() is None:
        pytest.skip(f"{vllm.name} is not installed: {vllm.install}")
    model = spoken.folder("llama", tmp_path / "model", **SIZES)
    source = open_source(str(model), cache=False)
    program = Pipeline.parse("quantize(bits=8, format=fp8, lm_head=16)").run(source.capture())[0]
    save_hf(program, tmp_path / "hf", source, hf_format="modelopt")
    speaks = AutoTokenizer.from_pretrained(model)
    given = ids = speaks(PROMPT, return_tensors="pt")["input_ids"]
    for _ in range(TOKENS):
        said = program.run(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
        ids = torch.cat([ids, said[:, -1:].argmax(-1)], 1)
    text = speaks.decode(ids[0, given.shape[1] :], skip_special_tokens=True)
    assert len(text) > 20 and vllm.write(tmp_path / "hf", PROMPT, TOKENS) == text
    spoil(tmp_path / "hf")
    assert vllm.write(tmp_path / "hf", PROMPT, TOKENS) != text
