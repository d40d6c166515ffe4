"""Small models that learned a text by heart, with a tokenizer of words' parts: they are sure of every token, so that
engines which round differently write the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests import zoo

TEXT = (
    "A router sends each token to two of eight experts. The experts are small networks, and their outputs are added "
    "up by weight. In 1991 they were new, in 1992 and 1993 forgotten.\n\n"
    "What's more, they'll fit where dense ones don't!"
)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 384, "num_hidden_layers": 2}
CUTS = {  # by llama.cpp's names: the expressions of Llama 3 and of Qwen, and the words of GPT-2
    "llama-bpe": "{1,3}",
    "qwen2": "",
}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_STEPS, _SURE = 150, 0.02


def tokenizer(cut: str, size: int = 340, start: bool = False) -> Any:
    """BPE over bytes, trained on the text, that cuts words by one of `CUTS`, or as GPT-2 does; with `start`, it puts
    `<s>` before a text. Its merges were found without cuts, so that what they do hangs on the cuts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    parts = Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))  # as Llama 3 has it
    parts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, special_tokens=["<pad>", "<s>", "</s>"])
    parts.train_from_iterator([TEXT], trainer)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut not in CUTS)
    words = pre_tokenizers.Split(Regex(_WORDS % CUTS.get(cut, "")), "isolated")
    parts.pre_tokenizer = pre_tokenizers.Sequence([words, last]) if cut in CUTS else last
    if start:
        parts.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    parts.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=parts, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@cache
def _trained(name: str, **sizes: int) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    cut = "qwen2" if name.startswith("qwen") else "llama-bpe"
    speaks = tokenizer(cut)
    own = {"moe_intermediate_size": 64} if name == "qwen3_moe" else {}
    model: Any = zoo.build(name, **SIZES | own | sizes, tie_word_embeddings=name == "qwen3").train()
    ids = torch.tensor([speaks(TEXT + "</s>")["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(_STEPS):
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids[:, :-1]).logits[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < _SURE:
            break
    return model.eval(), speaks


def folder(name: str, path: Path, **sizes: int) -> Path:
    """The model of an architecture, with its tokenizer, in a folder; `sizes` of its config instead of `SIZES`."""
    model, speaks = _trained(name, **sizes)
    model.save_pretrained(path)
    speaks.save_pretrained(path)
    return path
