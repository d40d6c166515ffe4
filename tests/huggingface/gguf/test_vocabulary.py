"""Tokenizers in a GGUF file: llama.cpp makes the same tokens of a text, or the tokenizer is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moec.errors import MoecError
from moec.huggingface.gguf.architecture import add_settings
from moec.huggingface.gguf.vocabulary import add_vocabulary
from tests import zoo
from tests.huggingface.gguf import spoken

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
TEXTS = (
    spoken.TEXT,
    "hello  world\n\n  12345 I'm we'LL <think> x",
    "Bäume, 木 and \t tabs   ",
    " leading <s>",
)
Edit = Callable[[dict[str, Any]], Any]


def of_characters(size: int = 340) -> Any:
    """BPE over characters that falls back to bytes, as Llama 2 and Mixtral have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learned.train_from_iterator([spoken.TEXT], trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    model = json.loads(learned.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    parts = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    parts.normalizer = learned.normalizer
    parts.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    parts.add_special_tokens(["<unk>", "<s>", "</s>"])
    parts.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=parts, unk_token="<unk>", bos_token="<s>", eos_token="</s>", add_bos_token=True
    )


def written(tokenizer: Any, folder: Path, size: int = 384) -> tuple[Path, str]:
    """A file with the tokenizer and a model of no use."""
    tokenizer.save_pretrained(folder)
    config = zoo.build("llama", vocab_size=size).config
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_settings(writer, config)
    said = add_vocabulary(writer, folder, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path, said


def by_llama_cpp(path: Path) -> Callable[[str], list[int]]:
    """The tokens that llama.cpp makes of a text."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: list(model.tokenize(text.encode(), add_bos=True, special=True))


@pytest.mark.serving
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("cut", ["llama-bpe", "qwen2", "gpt-2"])
def test_llama_cpp_makes_the_same_tokens(cut: str, start: bool, tmp_path: Path) -> None:
    tokenizer = spoken.tokenizer(cut, start=start)
    path, said = written(tokenizer, tmp_path)
    tokens = by_llama_cpp(path)
    assert cut in said and [tokens(text) for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.serving
def test_llama_cpp_makes_the_same_tokens_of_characters(tmp_path: Path) -> None:
    tokenizer = of_characters()
    tokens = by_llama_cpp(written(tokenizer, tmp_path)[0])
    texts = (spoken.TEXT, "Bäume, 木  and", " spaces   first")
    assert [tokens(text) for text in texts] == [tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.serving
def test_another_cut_makes_other_tokens(tmp_path: Path) -> None:
    tokenizer = spoken.tokenizer("qwen2")
    path, _ = written(tokenizer, tmp_path)
    other = Path(f"{path}.other")
    data = path.read_bytes()
    assert data.count(b"qwen2") == 1
    other.write_bytes(data.replace(b"qwen2", b"gpt-2"))
    assert by_llama_cpp(other)(spoken.TEXT) != tokenizer(spoken.TEXT)["input_ids"]


def _regex(told: dict[str, Any]) -> None:
    told["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"


WRONG: dict[str, Edit] = {
    "Unigram": lambda told: told["model"].update(type="Unigram"),
    "merges": lambda told: told["model"].update(merges=[]),
    "cuts them by": _regex,
    "normalizes": lambda told: told.update(normalizer={"type": "Lowercase"}),
    "bytes": lambda told: told.update(decoder={"type": "Metaspace"}),
    "parts of words": lambda told: told["model"].update(continuing_subword_prefix="##"),
    "parts of words by '</w>'": lambda told: told["model"].update(end_of_word_suffix="</w>"),
    "words of their own": lambda told: told["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
    "keep what it cuts by": lambda told: told["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
    "ignore_merges": lambda told: told["model"].update(ignore_merges=True),
    "rows": lambda told: told["added_tokens"].append({"id": 999, "content": "<more>"}),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_tokenizer_that_is_not_known_is_refused(reason: str, tmp_path: Path) -> None:
    spoken.tokenizer("qwen2").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    told = json.loads(file.read_text())
    WRONG[reason](told)
    file.write_text(json.dumps(told))
    with pytest.raises(MoecError, match=reason) as caught:
        add_vocabulary(gguf.GGUFWriter(None, "llama"), tmp_path, 384)
    assert caught.value.code == "M206" and "remove tokenizer.json" in caught.value.fix
    file.unlink()  # the way out
    assert "token ids" in add_vocabulary(gguf.GGUFWriter(None, "llama"), tmp_path, 384)


def test_words_are_taken_whole_as_llama_cpp_takes_them(tmp_path: Path) -> None:
    spoken.tokenizer("llama-bpe").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    assert "llama-bpe" in add_vocabulary(gguf.GGUFWriter(None, "llama"), tmp_path, 384)
    file.write_text(json.dumps(changed(file, lambda told: told["model"].update(ignore_merges=False))))
    with pytest.raises(MoecError, match="ignore_merges") as caught:
        add_vocabulary(gguf.GGUFWriter(None, "llama"), tmp_path, 384)
    assert caught.value.code == "M206"


def changed(file: Path, edit: Edit) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(file.read_text())
    edit(told)
    return told


BROKEN: tuple[Edit, ...] = (
    lambda told: told.update(model=3),
    lambda told: (told["model"].update(vocab={}), told.update(added_tokens=[])),
    lambda told: told["model"].update(vocab=["a"]),
    lambda told: told["added_tokens"].append({"id": "x"}),
    lambda told: told.update(post_processor={"type": "TemplateProcessing", "single": [3, 4]}),
    lambda told: told["model"].update(merges=[3]),
)


@pytest.mark.parametrize("edit", BROKEN)
def test_a_broken_tokenizer_is_said(edit: Edit, tmp_path: Path) -> None:
    spoken.tokenizer("qwen2").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(changed(file, edit)))
    with pytest.raises(MoecError) as caught:
        add_vocabulary(gguf.GGUFWriter(None, "llama"), tmp_path, 384)
    assert caught.value.code == "M204"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/a.jinja"])
def test_no_link_out_of_the_folder_is_followed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    spoken.tokenizer("qwen2").save_pretrained(folder)
    (tmp_path / "secret").write_text("{}")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(MoecError, match="link out of its folder"):
        add_vocabulary(gguf.GGUFWriter(None, "llama"), folder, 384)
