"""A tiny Llama that has a tokenizer, and its engine folder for onnxruntime-genai; never changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo import VOCAB, save

LINES = ("def quicksort(items):", "    if len(items) <= 1:", "        return items", "    pivot = items[0]", "    less = [i for i in items if i < pivot]")
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder, with a tokenizer that was trained on `LINES`, a chat template, and files that nobody should copy."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = Path(save("llama", tmp_path_factory.mktemp("models") / "speaking-llama"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    for name in ("tokenization_own.py", "tokenizer.pkl", "training_args.bin"):
        (folder / name).write_bytes(b"not for clients")
    return folder


@pytest.fixture(scope="session")
def speaking_engine(speaking: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of `speaking`, laid out as decoders are by default."""
    import moec

    out = tmp_path_factory.mktemp("engines") / "speaking-llama"
    assert moec.compile(speaking, out=out).layout == "genai"
    return out
