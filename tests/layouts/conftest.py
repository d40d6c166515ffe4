"""Tiny decoders whose texts are varied, one with a tokenizer, and their engine folders for onnxruntime-genai; never
changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.execution.test_generation import talkative
from tests.made_once import made_once
from tests.zoo import VOCAB

LINES = (
    "def quicksort(items):",
    "    if len(items) <= 1:",
    "        return items",
    "    pivot = items[0]",
    "    less = [i for i in items if i < pivot]",
)
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder, with a tokenizer that was trained on `LINES`, a chat template, and files that nobody should
    copy."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )

    def write(folder: Path) -> None:
        talkative("llama").save_pretrained(folder)  # type: ignore[operator]  # a PreTrainedModel
        fast.save_pretrained(folder)
        for name in ("tokenization_own.py", "tokenizer.pkl", "training_args.bin"):
            (folder / name).write_bytes(b"not for clients")

    return made_once(tmp_path_factory, "models/speaking-llama", write)


@pytest.fixture(scope="session")
def speaking_engine(speaking: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `speaking`, laid out as decoders are by default."""
    import moec

    def build(out: Path) -> None:
        assert moec.compile(speaking, out=out).layout == "genai"

    return made_once(tmp_path_factory, "engines/speaking-llama", build)


Decoder = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def decoder(speaking: Path, speaking_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """`decoder(name)`: a zoo model's folder and its engine's, each made once."""
    import moec

    made = {"llama": (speaking, speaking_engine)}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            model, engine = tmp_path_factory.mktemp("models") / name, tmp_path_factory.mktemp("engines") / name
            talkative(name).save_pretrained(model)  # type: ignore[operator]  # a PreTrainedModel
            moec.compile(model, out=engine)
            made[name] = model, engine
        return made[name]

    return get
