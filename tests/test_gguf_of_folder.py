"""`benchmarks/gguf_of_folder.py`: llama.cpp runs the very model that it is compared on, or is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import zoo

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOLERANCE = 5e-4  # max |d|/std of the logits; 2e-6 to 4e-5 were measured, and 0.05 to 3 of the wrong models below
NEXT = {"linear_value_head_dim": 8, "head_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_next": NEXT,
    "qwen3_next, tied, one value head a key head": {
        **NEXT,
        "tie_word_embeddings": True,
        "linear_num_key_heads": 4,
        "num_hidden_layers": 5,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"] + ["linear_attention"] * 2,
    },
}


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Iterator[None]:
    """The benchmark's modules import each other by bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))


def built(title: str) -> Any:
    return zoo.build(title.split(",")[0], **MODELS[title])


@torch.no_grad()
def distance(model: Any, run: Any, length: int, more: int = 5) -> float:
    """How far a contestant's logits of a prompt's last token, and of tokens fed one by one, are from eager's."""
    ids = torch.randint(3, zoo.VOCAB, (1, length + more), generator=torch.Generator().manual_seed(length))
    want = model(input_ids=ids).logits[0].numpy()
    prefill, step = run
    found = [prefill(ids[:, :length].numpy()), *(step(token) for token in ids[0, length:].tolist())]
    return max(float(abs(a - b).max() / b.std()) for a, b in zip(found, want[length - 1 :], strict=True))


@pytest.mark.parametrize("title", MODELS)
def test_llama_cpp_gives_the_logits_of_eager(title: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    from decoder_contestants import llama_cpp

    model = built(title)
    model.save_pretrained(tmp_path / "model")
    run = llama_cpp(tmp_path / "model")
    assert max(distance(model, run, length) for length in (1, 3, 64, 100, 7)) < TOLERANCE
    for name in ("A_log", "dt_bias", "in_proj_ba", "shared_expert_gate", "k_norm", "mlp.experts.down_proj"):
        wrong = built(title)
        weights = [w for n, w in wrong.named_parameters() if n.removesuffix(".weight").endswith(name)]
        for weight in weights:
            weight.data[-1] += 0.1
        assert not weights or distance(wrong, run, 64) > 10 * TOLERANCE, name


@pytest.mark.parametrize("heads", [2, 4])
def test_projections_of_a_delta_net_are_what_the_model_makes_of_them(heads: int) -> None:
    from gguf_of_folder import tensors

    model = zoo.build("qwen3_next", **NEXT, linear_num_key_heads=heads)
    found, layer = tensors(model.state_dict(), model.config), model.model.layers[0].linear_attn
    x = torch.randn(1, 3, model.config.hidden_size)
    q, k, v, z, *_ = layer.fix_query_key_value_ordering(layer.in_proj_qkvz(x), layer.in_proj_ba(x))
    want = torch.cat([part.flatten(2) for part in (q, k, v)], 2)
    torch.testing.assert_close(x @ found["blk.0.attn_qkv.weight"].T, want)
    torch.testing.assert_close(x @ found["blk.0.attn_gate.weight"].T, z.flatten(2))


def test_other_models_are_refused() -> None:
    from gguf_of_folder import why_not

    assert [why_not(built(title).config) for title in MODELS] == [""] * len(MODELS)
    wrong = {
        "qwen2_moe": {},
        "qwen3_moe": {"norm_topk_prob": False},
        "qwen3_next": {**NEXT, "linear_value_head_dim": 6},
    }
    assert all(why_not(zoo.build(kind, **changes).config) for kind, changes in wrong.items())
    assert why_not(zoo.build("qwen3_next", **NEXT, layer_types=["full_attention", "linear_attention"]).config)
