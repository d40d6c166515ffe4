"""A tokenizer of transformers in a GGUF file, so that llama.cpp makes the same tokens of a text.

Two kinds are known. Byte-level BPE (Llama 3, Qwen): tokens and merges as tokenizer.json has them, and a name for the
expression that cuts a text into words. BPE over characters that falls back to bytes (Llama 2, Mixtral), which llama.cpp
merges by a score of the result: it gets the rank of the merge, negative, which is the same order. Marks around a text
and chat templates are read by the package `gguf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.files.inside import read_inside, require_inside

FILE = "tokenizer.json"
# what the package reads beside it
_BESIDE = ("tokenizer_config.json", "config.json", "merges.txt", "chat_template.json", "chat_template.jinja")
_TEMPLATES = "additional_chat_templates/*.jinja"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# how a text is cut into words -> llama.cpp's name for it
_CUTS = {_CONTRACTIONS + _WORDS % "{1,3}": "llama-bpe", _CONTRACTIONS + _WORDS % "": "qwen2"}
_TAKES_WHOLE = "llama-bpe"  # a word that is a token is that token there, whatever merges make of it
_WHOLE, _MERGED = "it takes words that are tokens whole (ignore_merges)", "it merges every word (ignore_merges=false)"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_FIX = f"remove {FILE} from the folder: the file then has no vocabulary, and takes token ids"


def add_vocabulary(writer: Any, folder: Path | None, size: int) -> str:
    """Write a tokenizer through a `gguf.GGUFWriter`, or that there is none; returns a line on what was written.

    Args:
        folder: of the model. size: rows of the embedding; tokens that the tokenizer lacks are filled up, unused.

    Raises:
        MoecError: M206 for a tokenizer that llama.cpp is not told to be the same, M204 for a broken one.
    """
    if folder is None or not (folder / FILE).is_file():
        writer.add_tokenizer_model("none")
        return f"no vocabulary, since the model has no {FILE}: the file takes token ids"
    path = folder / FILE
    for file in (*map(folder.joinpath, _BESIDE), *folder.glob(_TEMPLATES)):
        require_inside(file, folder)
    try:
        return _add(writer, json.loads(read_inside(path, folder)), path, size)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MoecError("M204", f"the tokenizer cannot be read: {error!r}", str(path), _FIX) from error


def _add(writer: Any, told: Mapping[str, Any], path: Path, size: int) -> str:
    """Write what a tokenizer.json says. Raises anything where it is broken."""
    kind, cut = _kind(told)
    if not kind:
        raise MoecError("M206", f"llama.cpp is not known to cut texts as the tokenizer does: {cut}", str(path), _FIX)
    tokens, kinds = _tokens(told, size, path)
    writer.add_tokenizer_model(kind)
    if cut:
        writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if kind == "llama":
        writer.add_token_scores(_scores(told, tokens))
        writer.add_add_space_prefix(_prefixes(told))
    _add_marks(writer, path.parent, kind, size)
    return f"{len(tokens)} tokens of {kind}{', cut as ' + cut if cut else ''}"


def copy_vocabulary(writer: Any, file: Path) -> str:
    """Write the vocabulary of another GGUF file, entry by entry; returns a line that says so."""
    import gguf

    for name, entry in gguf.GGUFReader(file).fields.items():
        if name.startswith("tokenizer."):
            kinds = entry.types
            writer.add_key_value(name, entry.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    return f"the vocabulary of {file.name}"


def _kind(told: Mapping[str, Any]) -> tuple[str, str]:
    """llama.cpp's names of the tokenizer and of its way to cut a text; the first is empty, and the second the reason,
    where it has none."""
    model = told["model"]
    if model["type"] != "BPE" or not model["merges"]:
        return "", f"it is a {model['type']} without merges"
    marked = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if marked:
        return "", f"it marks the parts of words by {marked!r}"
    if model.get("byte_fallback"):
        if model.get("ignore_merges"):
            return "", _WHOLE
        return ("llama", "") if told.get("pre_tokenizer") is None or _prefixes(told) else ("", "it cuts words")
    if (told.get("decoder") or {}).get("type") != "ByteLevel":
        return "", "its tokens are no bytes"
    if (told.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return "", f"it normalizes texts by {told['normalizer']['type']}"
    steps = _steps(told["pre_tokenizer"])
    splits = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if any(step.get("invert") or step["behavior"] != "Isolated" for step in steps if step["type"] == "Split"):
        return "", "it does not keep what it cuts by as words of their own"
    last = steps[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space") or len(steps) != len(splits) + 1:
        return "", " then ".join(step["type"] for step in steps)
    known = _CUTS.get(str(splits[0])) if len(splits) == 1 and not last.get("use_regex", True) else None
    if not splits and last.get("use_regex", True):
        known = "gpt-2"
    if known and bool(model.get("ignore_merges")) != (known == _TAKES_WHOLE):
        return "", f"{_WHOLE if model.get('ignore_merges') else _MERGED}, as {known} does not there"
    return ("gpt2", known) if known else ("", f"it cuts them by {splits}")


def _steps(pre_tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if pre_tokenizer["type"] == "Sequence":
        return [*pre_tokenizer["pretokenizers"]]
    return [pre_tokenizer]


def _prefixes(told: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text: by a normalizer, or by the step that makes marks of spaces."""
    normalizer = told.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    before = told.get("pre_tokenizer") or {}
    marked = before.get("type") == "Metaspace" and before.get("prepend_scheme") in ("first", "always")
    return marked or any(part.get("type") == "Prepend" for part in parts)


def _tokens(told: Mapping[str, Any], size: int, path: Path) -> tuple[list[str], list[int]]:
    """Every token's text and its kind. Raises M206 where there are more than the model has rows."""
    import gguf

    by_id = {number: token for token, number in told["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in told.get("added_tokens", ())}
    by_id |= {number: entry["content"] for number, entry in added.items()}
    if max(by_id) >= size:
        what = f"the tokenizer has a token {max(by_id)}, and the model {size} rows"
        raise MoecError("M206", what, str(path), _FIX)
    unknown, of = told["model"].get("unk_token"), gguf.TokenType
    kinds = []
    for number in range(size):
        token = by_id.get(number)
        if token is None:
            kinds.append(of.UNUSED)
        elif token == unknown:
            kinds.append(of.UNKNOWN)
        elif number in added:
            kinds.append(of.CONTROL if added[number].get("special") else of.USER_DEFINED)
        else:
            fallback = told["model"].get("byte_fallback") and _BYTE.fullmatch(token)
            kinds.append(of.BYTE if fallback else of.NORMAL)
    return [by_id.get(number, f"[PAD{number}]") for number in range(size)], [int(kind) for kind in kinds]


def _scores(told: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """Of each token the rank of the first merge that makes it, negative; those of no merge come last."""
    merges = told["model"]["merges"]
    made = ["".join(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges]
    ranks = {token: -float(rank) for rank, token in reversed([*enumerate(made)])}
    return [ranks.get(token, -float(len(made))) for token in tokens]


def _add_marks(writer: Any, folder: Path, kind: str, size: int) -> None:
    """Merges, the tokens that begin and end a text, whether they are put there, and the chat template."""
    import gguf

    found = gguf.SpecialVocab(folder, load_merges=kind == "gpt2", n_vocab=size)
    if "bos" not in found.add_special_token:  # llama.cpp would put one by a rule of its own
        found.add_special_token["bos"] = False
    found.add_to_gguf(writer, quiet=True)
