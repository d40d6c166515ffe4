"""Names of tensors in a GGUF file, and the rows of queries and keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.huggingface.gguf.names import from_gguf, to_gguf
from moec.huggingface.saving.planned import plan
from moec.pipeline.pipeline import Pipeline
from moec.weights.lazy import Weight
from tests import zoo

pytest.importorskip("gguf", reason="gguf is not installed")
ARCHITECTURES = {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}


def planned(name: str) -> Any:
    return plan(zoo.captured(name), zoo.source(name), untouched=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_has_a_name_there_and_comes_back(name: str) -> None:
    found, kind = planned(name), ARCHITECTURES[name]
    there: dict[str, Weight] = to_gguf(found.stored, found.config, kind)  # type: ignore[assignment]
    assert [w for w in there.values() if isinstance(w, str)] == []
    back: dict[str, Weight] = from_gguf(there, found.config, kind)  # type: ignore[assignment]
    assert set(back) == set(found.stored)
    assert [n for n, w in found.stored.items() if not torch.equal(w.load(), back[n].load())] == []
    moved = [n for n in there if ".attn_q." in n or ".attn_k." in n]
    same = [n for n in moved if torch.equal(there[n].load(), found.stored[_own(n)].load())]
    assert len(moved) == 4 and same == ([] if kind == "llama" else moved)


def _own(name: str) -> str:
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.self_attn.{part[-1]}_proj.weight"


def test_experts_are_one_tensor_a_matrix() -> None:
    found = planned("mixtral")
    there: dict[str, Weight] = to_gguf(found.stored, found.config, "llama")  # type: ignore[assignment]
    assert there["blk.1.ffn_down_exps.weight"].shape == (8, 32, 48)
    first = found.stored["model.layers.1.block_sparse_moe.experts.5.w2.weight"].load()
    assert torch.equal(there["blk.1.ffn_down_exps.weight"].load()[5], first)


def test_moved_rows_keep_their_codes() -> None:
    program = Pipeline.parse("quantize(bits=4, group=32)").run(zoo.captured("llama"))[0]
    found = plan(program, zoo.source("llama"))
    there: dict[str, Weight] = to_gguf(found.stored, found.config, "llama")  # type: ignore[assignment]
    query = there["blk.0.attn_q.weight"]
    assert query.coded is not None
    codes = torch.ops.moec.dequantize(query.coded.packed.load(), query.coded.scale.load(), None, bits=4)
    assert torch.equal(codes, query.load())


def test_what_the_file_has_no_name_for_is_named() -> None:
    found = planned("llama")
    stored = {**found.stored, "model.layers.0.self_attn.sinks": found.stored["model.norm.weight"]}
    assert "model.layers.0.self_attn.sinks" in to_gguf(stored, found.config, "llama").values()
    weights = {"blk.0.attn_sinks.weight": found.stored["model.norm.weight"]}
    assert from_gguf(weights, found.config, "llama") == {"blk.0.attn_sinks.weight": "blk.0.attn_sinks.weight"}
