"""onnxruntime-genai loads engine folders as they are and generates what transformers generates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moec.layouts import ModelFacts
from moec.layouts.genai import config, refusal
from moec.program.decoder_signature import IDS, MASK, TOTAL, past_names
from moec.program.program import Input
from tests.layouts.conftest import LINES, Decoder

TOKENS = 64
FACTS = ModelFacts("tiny", "llama", 96, 128, 32, 4, 2, 2, 8, bos=1, eos=(2,), pad=0)


def decoder_inputs(layers: int = 2, value_width: int = 8) -> tuple[Input, ...]:
    """A decoder's signature as moec captures it."""
    caches = [
        Input(name, torch.float32, ("batch", 2, "past_sequence", width))
        for n in range(layers)
        for name, width in zip(past_names(n), (8, value_width), strict=True)
    ]
    return (Input(IDS, torch.int64, ("batch", "sequence")), Input(MASK, torch.int64, ("batch", TOTAL)), *caches)


# ---------------------------------------------------------------------- the file
def test_the_config_names_the_engines_own_inputs_and_searches_greedily() -> None:
    made = config(
        decoder_inputs(),
        ["logits"],
        replace(FACTS, sampling={"temperature": 0.6, "min_p": 0.1}),
        device="cuda",
        threads=4,
        settings={"use_tf32": "0", "session.use_device_allocator_for_initializers": "1"},
    )
    decoder = made["model"]["decoder"]
    assert (
        decoder["inputs"]["past_key_names"] % 1 == "past_key_values.1.key"
        and decoder["outputs"]["present_value_names"] % 0 == "present.0.value"
    )
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (8, 2, 2)
    assert "position_ids" not in decoder["inputs"] and decoder["session_options"] == {
        "intra_op_num_threads": 4,
        "session.use_device_allocator_for_initializers": "1",
        "provider_options": [{"cuda": {"use_tf32": "0"}}],
    }
    assert made["search"] == {
        "do_sample": False,
        "num_beams": 1,
        "max_length": 128,
        "past_present_share_buffer": False,
        "temperature": 0.6,
    }


@pytest.mark.parametrize("shared", [False, True])
def test_the_config_says_whether_the_cache_is_one_buffer(shared: bool) -> None:
    assert (
        config(decoder_inputs(), ["logits"], FACTS, shared_cache=shared)["search"]["past_present_share_buffer"]
        is shared
    )


@pytest.mark.parametrize(
    ("facts", "pad", "eos"),
    [
        (FACTS, 0, 2),
        (replace(FACTS, pad=None), 2, 2),
        (replace(FACTS, eos=(2, 5)), 0, [2, 5]),
        (replace(FACTS, pad=None, eos=()), 0, None),
    ],
)
def test_padding_and_ends(facts: ModelFacts, pad: int, eos: Any) -> None:
    model = config(decoder_inputs(), ["logits"], facts)["model"]
    assert (model["pad_token_id"], model.get("eos_token_id")) == (pad, eos)


def test_layers_with_a_state_that_does_not_grow_are_of_the_type_that_has_one() -> None:
    state = Input("past_key_values.0.recurrent_state", torch.float32, ("batch", 4, 8, 8))
    inputs = (*decoder_inputs()[:2], state, *decoder_inputs()[4:])
    assert refusal(inputs, FACTS) is None and "layer 0 has" in str(refusal((*decoder_inputs(), state), FACTS))
    decoder = config(inputs, ["logits"], FACTS)["model"]["decoder"]
    assert decoder["layer_types"] == ["linear_attention", "full_attention"]
    assert "layer_types" not in config(decoder_inputs(), ["logits"], FACTS)["model"]["decoder"]


@pytest.mark.parametrize(
    ("inputs", "facts", "reason"),
    [
        (decoder_inputs()[:2], FACTS, "no key-value cache"),
        ((*decoder_inputs(), Input("pixel_values", torch.float32, ("batch", 3))), FACTS, "pixel_values"),
        (decoder_inputs(value_width=6), FACTS, "differ in width"),
        ((*decoder_inputs(), Input("past_key_values.1.index_key", torch.float32, ("batch", 3))), FACTS, "index_key"),
        (decoder_inputs(), replace(FACTS, context=0), "context"),
    ],
)
def test_what_its_runtime_cannot_run_is_refused(inputs: tuple[Input, ...], facts: ModelFacts, reason: str) -> None:
    assert reason in str(refusal(inputs, facts))
    assert refusal(decoder_inputs(), FACTS) is None


# ---------------------------------------------------------------------- the runtime
def generate(folder: Path, prompts: list[list[int]], tokens: int = TOKENS) -> list[list[int]]:
    """What onnxruntime-genai appends to each prompt up to the end of the text; shorter ones are padded on the right, as
    its tokenizer does."""
    og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model, longest = og.Model(str(folder)), max(map(len, prompts))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=longest + tokens, batch_size=len(prompts))
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([p + [0] * (longest - len(p)) for p in prompts], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [until_end([int(t) for t in generator.get_sequence(n)][longest:]) for n in range(len(prompts))]


def another(engine: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """An engine whose config says something else of its model."""
    shutil.copytree(engine, copy)
    made = json.loads((copy / "genai_config.json").read_text())
    change(made["model"])
    (copy / "genai_config.json").write_text(json.dumps(made))
    return copy


def until_end(tokens: list[int]) -> list[int]:
    """A text without its end token, which onnxruntime-genai leaves out where it ends a whole batch, and without what
    follows it."""
    return tokens[: tokens.index(FACTS.eos[0])] if FACTS.eos[0] in tokens else tokens


def expected(folder: Path, prompts: list[list[int]], tokens: int = TOKENS, spoil: bool = False) -> list[list[int]]:
    """What transformers' own generate appends in eager PyTorch, shorter prompts padded on the left, as it wants
    them."""
    import transformers

    model, longest = transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), max(map(len, prompts))
    if spoil:
        with torch.no_grad():
            model.model.layers[0].self_attn.k_proj.weight *= 1.5
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    made: torch.Tensor = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return [until_end(row) for row in made[:, longest:].tolist()]


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 96, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("lengths", [(1,), (7,), (40,), (5, 9, 3), (1, 30, 12)])
@pytest.mark.parametrize("name", ["llama", "mixtral", "mistral"])  # the last has a window of 5 tokens
def test_greedy_text_is_transformers_own(name: str, lengths: tuple[int, ...], decoder: Decoder) -> None:
    model, engine = decoder(name)
    asked = prompts(*lengths)
    want = expected(model, asked)
    assert generate(engine, asked) == want
    assert len({token for text in want for token in text}) > 2


def test_it_takes_as_many_threads_as_the_config_says(speaking_engine: Path, tmp_path: Path) -> None:
    """Its own default is half of the machine's: the number that is written must reach it."""
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    assert (
        json.loads((speaking_engine / "genai_config.json").read_text())["model"]["decoder"]["session_options"][
            "intra_op_num_threads"
        ]
        == 0
    )
    script = (
        "import onnxruntime_genai as og, os, sys; before = len(os.listdir('/proc/self/task')); model = "
        "og.Model(sys.argv[1]); "
    )
    script += "print(len(os.listdir('/proc/self/task')) - before)"
    begun = []
    for threads in (1, 3):
        copy = another(
            speaking_engine,
            tmp_path / str(threads),
            lambda model, n=threads: model["decoder"]["session_options"].update(intra_op_num_threads=n),
        )
        begun.append(
            int(subprocess.run([sys.executable, "-c", script, copy], capture_output=True, text=True, check=True).stdout)
        )
    assert begun[1] - begun[0] == 2


def test_another_model_says_something_else(speaking: Path, speaking_engine: Path) -> None:
    asked = prompts(5, 9, 3)
    assert generate(speaking_engine, asked) != expected(speaking, asked, spoil=True)


def test_a_config_with_another_padding_token_says_something_else(
    speaking: Path, speaking_engine: Path, tmp_path: Path
) -> None:
    """The mutant of the masks: with padding that is taken for text, batches differ."""
    copy = another(speaking_engine, tmp_path / "engine", lambda model: model.update(pad_token_id=95))
    asked = prompts(5, 9, 3)
    assert generate(copy, asked) != expected(speaking, asked)


def test_its_tokenizer_reads_the_files_beside_the_engine(speaking: Path, speaking_engine: Path) -> None:
    og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    import transformers

    theirs, ours = og.Tokenizer(og.Model(str(speaking_engine))), transformers.AutoTokenizer.from_pretrained(speaking)
    for line in LINES:
        assert list(theirs.encode(line)) == ours(line).input_ids
        assert theirs.decode(theirs.encode(line)) == line
    assert theirs.apply_chat_template('[{"role": "user", "content": "less"}]', add_generation_prompt=False) == "<s>less"
    assert (list(theirs.eos_token_ids), theirs.pad_token_id) == ([2], 0)
