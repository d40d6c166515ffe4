"""GGUF files as models: the numbers are those that transformers reads, and codes stay packed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moec import EagerEngine, open_source
from moec.errors import MoecError
from moec.huggingface.gguf.read import read_gguf
from moec.huggingface.gguf.write import save_gguf
from moec.huggingface.saving.plain_weights import is_quantized
from moec.pipeline.pipeline import Pipeline
from moec.program.dialect_call import DEQUANTIZE
from tests.huggingface.gguf.test_write import KINDS, Q4, Q8, made, passed

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
CLOSE = 1e-5  # max |d|/std; 1e-6 was measured, and 0.1 to 3 of the wrong files
SIZES = {"batch": 2, "sequence": 7}


def logits(run: Any, source: Any) -> torch.Tensor:
    """Of real tokens: what is computed at padding is nobody's business."""
    sample = source.sample(SIZES)
    return run(sample)["logits"][sample["attention_mask"].bool()]  # type: ignore[no-any-return]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.std())


@pytest.mark.parametrize(
    ("name", "passes", "floats"),
    [("llama", "", "f32"), ("mixtral", Q4, "f16"), ("qwen3", Q8, "bf16"), ("qwen3_moe", Q4, "f32")],
)
def test_a_file_is_the_program_that_was_written(
    name: str, passes: str, floats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, program = passed(name, passes, torch.float16 if passes else torch.float32)
    file = tmp_path / "m.gguf"
    save_gguf(program, file, source, floats=floats)
    found = open_source(str(file))
    again = found.capture()
    assert is_quantized(again) == bool(passes) and len(again.nodes(DEQUANTIZE)) == len(program.nodes(DEQUANTIZE))
    reference = logits(found.reference().run, found)
    assert distance(logits(EagerEngine(again).run, found), reference) < CLOSE
    if KINDS[name] == "llama":
        monkeypatch.setattr("moec.huggingface.gguf.names._moved", lambda name, weight, *_, back: weight)
        wrong = open_source(str(file))
        assert distance(logits(wrong.reference().run, found), reference) > 1000 * CLOSE


@pytest.mark.parametrize(
    ("name", "passes", "sizes"),
    [("llama", Q4, {}), ("qwen3", "", {"head_dim": 128}), ("qwen3_moe", Q8, {"moe_intermediate_size": 768})],
)
def test_transformers_reads_the_same_numbers(name: str, passes: str, sizes: Any, tmp_path: Path) -> None:
    """Of a Mixtral it makes a Llama without experts, and it leaves two sizes at their defaults, which these models
    have."""
    from transformers import AutoModelForCausalLM

    source, program = made(name, **sizes)
    program = Pipeline.parse(passes).run(program)[0] if passes else program
    save_gguf(program, tmp_path / "m.gguf", source, floats="f32")
    found = open_source(str(tmp_path / "m.gguf"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    own, state = found.origin.loaded().state_dict(), theirs.state_dict()
    assert set(own) == set(state) and [n for n in own if not torch.equal(own[n], state[n])] == []


def test_an_untouched_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    source, program = passed("mixtral", Q4)
    save_gguf(program, tmp_path / "m.gguf", source)
    found = open_source(str(tmp_path / "m.gguf"))
    save_gguf(found.capture(), tmp_path / "again.gguf", found)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def written(path: Path, changes: Any) -> Path:
    """A small Llama's file, its tensors and fields changed."""
    source, program = made("llama")
    save_gguf(program, path / "right.gguf", source, floats="f32")
    reader, out = gguf.GGUFReader(path / "right.gguf"), path / "m.gguf"
    named = [(n, f) for n, f in reader.fields.items() if not n.startswith("GGUF.")]
    fields: dict[str, Any] = {n: (f.contents(), f.types[0]) for n, f in named}
    tensors = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
    changes(fields, tensors)
    writer = gguf.GGUFWriter(out, fields.pop("general.architecture")[0])
    for name, entry in fields.items():
        writer.add_key_value(name, *entry)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _other(fields: Any, tensors: Any) -> None:
    fields["general.architecture"] = ("gemma3", fields["general.architecture"][1])


def _more(fields: Any, tensors: Any) -> None:
    tensors["blk.0.attn_sinks.weight"] = tensors["output_norm.weight"]


def _finer(fields: Any, tensors: Any) -> None:
    data, _ = tensors["blk.0.ffn_up.weight"]
    form = gguf.GGMLQuantizationType.Q5_0
    tensors["blk.0.ffn_up.weight"] = gguf.quantize(data, form), form


def _turned(fields: Any, tensors: Any) -> None:
    fields["llama.rope.scaling.type"] = ("yarn", gguf.GGUFValueType.STRING)


def _split(fields: Any, tensors: Any) -> None:
    fields["split.count"] = (2, gguf.GGUFValueType.UINT16)


def _unsaid(fields: Any, tensors: Any) -> None:
    del fields["llama.block_count"]


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        (_other, "M206", "gemma3"),
        (_more, "M206", "attn_sinks"),
        (_finer, "M206", "Q5_0"),
        (_turned, "M206", "yarn"),
        (_unsaid, "M204", "block_count"),
        (_split, "M206", "one part"),
    ],
)
def test_a_file_that_is_not_known_is_refused(changes: Any, code: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match=reason) as caught:
        read_gguf(written(tmp_path, changes))
    assert caught.value.code == code and caught.value.fix
    assert read_gguf(tmp_path / "right.gguf").config["model_type"] == "llama"


def _by_layer(fields: Any, tensors: Any) -> None:
    of = gguf.GGUFValueType
    fields["llama.attention.head_count_kv"] = ([2, 4], of.ARRAY, of.UINT32)


def _two_ends(fields: Any, tensors: Any) -> None:
    of = gguf.GGUFValueType
    fields["tokenizer.ggml.eos_token_id"] = ([2, 4], of.ARRAY, of.UINT32)


@pytest.mark.parametrize(("changes", "name"), [(_by_layer, "head_count_kv"), (_two_ends, "eos_token_id")])
def test_a_list_where_one_value_is_read_is_refused(changes: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match=name) as caught:
        read_gguf(written(tmp_path, changes))
    assert caught.value.code == "M206"


def _number(name: str, value: int) -> Any:
    return lambda fields, tensors: fields.update({f"llama.{name}": (value, gguf.GGUFValueType.UINT32)})


def _text(fields: Any, tensors: Any) -> None:
    fields["llama.block_count"] = ("two", gguf.GGUFValueType.STRING)


def _cut(name: str, rows: int) -> Any:
    return lambda fields, tensors: tensors.update({name: (tensors[name][0][:rows].copy(), tensors[name][1])})


def _half(fields: Any, tensors: Any) -> None:
    tensors["rope_freqs.weight"] = np.ones(8, dtype=np.float16), gguf.GGMLQuantizationType.F16


@pytest.mark.parametrize(
    "changes",
    [
        *(_number("attention.head_count", 0), _number("block_count", 2**31), _number("embedding_length", 2**31)),
        *(_text, _half, _cut("blk.0.attn_q.weight", 63), _cut("blk.0.ffn_up.weight", 63)),
    ],
)
def test_a_header_of_no_model_is_said(changes: Any, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        open_source(str(written(tmp_path, changes))).account()
    assert caught.value.code in ("M204", "M205")


def test_text_that_is_none_is_said(tmp_path: Path) -> None:
    file = written(tmp_path, lambda fields, tensors: None)
    data = file.read_bytes()
    key = b"general.architecture" + bytes([8, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0])
    assert data.count(key + b"llama") == 1
    file.write_bytes(data.replace(key + b"llama", key + b"\xffl\xfe\xc0a"))
    with pytest.raises(MoecError) as caught:
        read_gguf(file)
    assert caught.value.code == "M204"


def test_a_tensor_that_lies_where_another_does_is_said(tmp_path: Path) -> None:
    """Its numbers would be the other's."""
    file = written(tmp_path, lambda fields, tensors: None)
    data, name = bytearray(file.read_bytes()), b"blk.1.attn_v.weight"
    assert data.count(name) == 1
    place = data.index(name) + len(name) + 4 + 2 * 8 + 4  # dimensions, their sizes, the form
    (offset,) = struct.unpack_from("<Q", data, place)
    for other in (offset - 256, offset + 32, 0):
        struct.pack_into("<Q", data, place, other)
        file.write_bytes(data)
        with pytest.raises(MoecError, match="attn_v") as caught:
            read_gguf(file)
        assert caught.value.code == "M204" and "again" in caught.value.fix


def test_weights_are_read_by_rows(tmp_path: Path) -> None:
    content = read_gguf(written(tmp_path, lambda fields, tensors: None))
    assert content.weights["model.embed_tokens.weight"].by_rows


def test_a_tensor_that_lacks_is_said(tmp_path: Path) -> None:
    file = written(tmp_path, lambda fields, tensors: tensors.pop("blk.1.attn_k.weight"))
    with pytest.raises(MoecError, match=r"layers\.1\.self_attn\.k_proj") as caught:
        open_source(str(file)).account()
    assert caught.value.code == "M205"


@pytest.mark.parametrize("length", [0, 3, 100, 3000])
def test_a_file_that_is_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    source, program = made("llama")
    save_gguf(program, tmp_path / "m.gguf", source)
    (tmp_path / "short.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:length])
    with pytest.raises(MoecError) as caught:
        open_source(str(tmp_path / "short.gguf"))
    assert caught.value.code == "M204" and "again" in caught.value.fix
