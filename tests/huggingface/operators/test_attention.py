"""Attention of transformers as one operator: masks, options, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import BertConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import and_masks, causal_mask_function, sdpa_mask, sliding_window_causal_mask_function
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.huggingface.operators.attention import _among_tokens, _forward, _is_causal, _mask, _seen
from moec.huggingface.source import HuggingFaceSource
from tests.zoo import captured


def rules(name: str) -> list[dict[str, Any]]:
    program = captured(name)
    nodes = program.nodes(torch.ops.moec.attention.default)
    return [{**n.kwargs, "mask": n.args[3].name, "sinks": len(n.args) > 4 and n.args[4] is not None} for n in nodes]  # type: ignore[union-attr]


def test_gemma2_caps_its_scores_and_only_every_other_layer_has_a_window() -> None:
    first, second = rules("gemma2")
    assert first["softcap"] == second["softcap"] == 50.0 and first["scale"] == 8**-0.5
    assert first["causal"] and second["causal"] and first["mask"] != second["mask"], (
        "one mask has a window, the other has none"
    )


def test_gpt_oss_has_sinks() -> None:
    assert all(rule["sinks"] for rule in rules("gpt_oss"))


def test_what_counts_as_causal() -> None:
    assert _is_causal(None) and _is_causal(causal_mask_function) and _is_causal(sliding_window_causal_mask_function(3))
    assert not _is_causal(lambda b, h, q, k: q >= 0) and not _is_causal(lambda b, h, q, k: k <= q + 1)
    batch = torch.zeros(2, 4, dtype=torch.bool, device="meta")
    assert not _is_causal(and_masks(causal_mask_function, lambda b, h, q, k: batch[b, k])), (
        "it reads the inputs, so nobody knows"
    )


def test_padding_takes_no_room_in_a_window() -> None:
    """The last token sees itself and the two tokens before it, wherever padding lies; padding on the left leaves every
    place as it was."""
    window, batch = sliding_window_causal_mask_function(3), torch.arange(3)
    padding = torch.tensor([[1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    seen = [_among_tokens(window, padding)(b, 0, torch.tensor(5), torch.arange(6)) & (padding[b] > 0) for b in batch]
    assert [s.nonzero().flatten().tolist() for s in seen] == [[1, 2, 5], [3, 4, 5], [3, 4, 5]]
    assert (window(0, 0, torch.tensor(5), torch.arange(6)) & (padding[0] > 0)).nonzero().flatten().tolist() == [5], (
        "what it would see else"
    )


@pytest.mark.parametrize(
    ("extra", "reason"), [({"slopes": torch.zeros(1)}, "slopes"), ({}, "causal mask of the kernel's own")]
)
def test_what_the_operator_cannot_express_is_refused(extra: dict[str, Any], reason: str) -> None:
    module, heads = SimpleNamespace(is_causal=True), torch.zeros(1, 2, 3, 4)
    with pytest.raises(MoecError, match=reason) as caught:
        _forward(module, heads, heads, heads, None, scaling=1.0, **extra)
    assert caught.value.code == "M206" and "--no-cache" in caught.value.fix


def drawn(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


@pytest.mark.parametrize("kind", ["bias", "sinks", "bias and sinks"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_and_a_sink_of_each_token_are_in_the_scores(kind: str, masked: bool) -> None:
    """Inkling's forms; each of the two changes the result, so that one left out would be seen."""
    query, key, value = drawn(2, 4, 3, 8), drawn(2, 2, 5, 8), drawn(2, 2, 5, 6)
    bias = drawn(2, 4, 3, 5) if "bias" in kind else None
    sinks = drawn(2, 4, 3, 1) if "sinks" in kind else None
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool).tril(2) if masked else None

    def want(bias: Tensor | None, sinks: Tensor | None) -> Tensor:
        scores = query @ key.repeat_interleave(2, 1).mT * 0.3 + (0 if bias is None else bias)
        scores = scores if mask is None else scores.masked_fill(~mask, -1e30)
        scores = scores if sinks is None else torch.cat([scores, sinks], -1)
        return (scores.softmax(-1)[..., :5] @ value.repeat_interleave(2, 1)).transpose(1, 2)

    module = SimpleNamespace(is_causal=False)
    got, _ = _forward(module, query, key, value, mask, scaling=0.3, position_bias=bias, sinks=sinks)
    assert torch.allclose(got, want(bias, sinks), atol=1e-5)
    for less in {(None, sinks), (bias, None)} - {(bias, sinks)}:
        assert not torch.allclose(got, want(*less), atol=1e-2)


def test_attention_beside_recurrent_layers_is_ours_too() -> None:
    """Qwen3-Next's class does not say that its attention is the one that is set; its source does."""
    found = rules("qwen3_next")
    assert found and all(rule["causal"] for rule in found)
    assert not captured("qwen3_next").nodes(torch.ops.aten.scaled_dot_product_attention.default)


@pytest.mark.parametrize("local", [None, 3], ids=["full", "window"])
def test_padding_is_a_view_and_the_mask_is_transformers_own(local: int | None) -> None:
    """Without padding in the middle both count the same tokens; ours never looks padding up by index."""
    padding = torch.tensor([[1, 1, 1, 1, 1, 1] if local else [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    allows = causal_mask_function if local is None else sliding_window_causal_mask_function(local)
    given = {
        "batch_size": 2,
        "q_length": 4,
        "kv_length": 6,
        "q_offset": 2,
        "kv_offset": 0,
        "mask_function": allows,
        "local_size": local,
    }
    want = sdpa_mask(**given, attention_mask=padding, allow_is_causal_skip=False)
    made = _mask(**given, attention_mask=padding)
    assert want is not None and made.moec_causal and torch.equal(made, want)  # type: ignore[attr-defined]
    assert not torch.equal(_mask(**given, attention_mask=torch.ones_like(padding)), want), "padding matters"
    traced = make_fx(lambda p: _mask(**given, attention_mask=p))(padding)
    assert torch.ops.aten.index.Tensor not in {n.target for n in traced.graph.nodes} or local is not None


def test_padding_of_another_length_is_left_to_transformers() -> None:
    assert (
        _seen(torch.ones(2, 5), kv_length=6) is None
        and _seen(torch.ones(2, 6), kv_length=6, kv_offset=2) is None
        and _seen(None, kv_length=6) is None
    )


class Biased(PreTrainedModel):
    """An encoder whose attention has an argument that nobody knows."""

    config_class = BertConfig
    _supports_attention_backend = _supports_sdpa = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.embed, self.is_causal = torch.nn.Embedding(config.vocab_size, config.hidden_size), False
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        heads = self.embed(input_ids).unflatten(-1, (2, -1)).transpose(1, 2)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, sdpa_attention_forward)
        extra = (
            {"slopes": heads.new_ones(1, 1, heads.shape[2], heads.shape[2])} if self.config.tie_word_embeddings else {}
        )
        return BaseModelOutput(attention(self, heads, heads, heads, None, **extra)[0].flatten(2))


@pytest.mark.parametrize("odd", [False, True])
def test_a_model_without_a_cache_keeps_an_attention_that_is_not_ours(odd: bool) -> None:
    torch.manual_seed(0)
    model = Biased(BertConfig(vocab_size=50, hidden_size=16, num_attention_heads=2, tie_word_embeddings=odd)).eval()
    source = HuggingFaceSource.from_model(model)
    program = source.capture()
    assert len(program.nodes(torch.ops.moec.attention.default)) == (0 if odd else 1)
    ids, mask = torch.arange(15).reshape(3, 5), torch.ones(3, 5, dtype=torch.int64)
    ours, want, other = (
        engine(input_ids=given, attention_mask=mask)["last_hidden_state"]
        for engine, given in ((EagerEngine(program), ids), (source.reference(), ids), (source.reference(), ids + 1))
    )
    assert torch.allclose(ours, want, atol=1e-6) and not torch.allclose(ours, other, atol=1e-6)
