"""A tokenizer of bytes in the form of transformers: real files, no download, and characters that are several tokens."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import VOCAB


def write_tokenizer(folder: Path, size: int = VOCAB) -> Path:
    """Write tokenizer.json and tokenizer_config.json for a model of `size` tokens.

    Tokens 0, 1 and 2 are padding, the start and the end of a text. The others are bytes: printable ASCII from token 3
    on, then, if there is room for them, all others.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    order = sorted(range(256), key=lambda b: (not 32 <= b < 127, b))
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{letters[b]: n + 3 for n, b in enumerate(order[: size - 3])}}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder
