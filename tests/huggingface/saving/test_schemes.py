"""How modules are stored is read off their weights; what servers compute as one has to be stored alike."""

from __future__ import annotations

import pytest
import torch

from moec.dialect import pack
from moec.errors import MoecError
from moec.huggingface.saving.schemes import Scheme, check_fused, most_common, schemes_of, tables_of
from moec.weights.lazy import Weight, decoded, from_tensor
from moec.weights.weight import PackedWeight

FOUR, EIGHT = Scheme(4, 16, True), Scheme(8, 32, False)


def packed(bits: int, group: int, symmetric: bool) -> Weight:
    scale = torch.ones(8, 32 // group)
    zero = None if symmetric else from_tensor(torch.ones_like(scale, dtype=torch.uint8), "zero")
    codes = pack(torch.zeros(8, 32, dtype=torch.int64), bits)
    return decoded(PackedWeight(from_tensor(codes, "codes"), from_tensor(scale, "scale"), zero, bits))


def test_schemes_are_those_of_the_weights() -> None:
    plain = from_tensor(torch.zeros(8, 32), "plain")
    stored = {
        "model.embed_tokens.weight": packed(8, 32, True),
        "a.weight": packed(4, 16, True),
        "b.weight": packed(8, 32, False),
        "gate.weight": plain,
        "norm.weight": from_tensor(torch.zeros(8), "norm"),
        "a.bias": from_tensor(torch.zeros(8), "bias"),
    }
    tables = tables_of(stored)
    assert tables == {"model.embed_tokens.weight"}
    assert schemes_of(stored, tables) == {"a": FOUR, "b": EIGHT, "gate": None}


def test_experts_count_before_all_others() -> None:
    modules = {"m.experts.0.up_proj": EIGHT, "q_proj": FOUR, "o_proj": FOUR, "gate": None}
    assert most_common(modules) == EIGHT
    assert most_common({k: s for k, s in modules.items() if "experts" not in k}) == FOUR
    assert most_common({"gate": None}) is None


@pytest.mark.parametrize(
    ("one", "two", "where"),
    [
        ("l.self_attn.q_proj", "l.self_attn.v_proj", "l.self_attn"),
        ("l.mlp.gate_proj", "l.mlp.up_proj", "l.mlp"),
        ("l.mlp.experts.0.down_proj", "l.mlp.experts.3.up_proj", "l.mlp.experts"),
    ],
)
def test_what_is_computed_as_one_is_stored_alike(one: str, two: str, where: str) -> None:
    check_fused({one: FOUR, two: FOUR, "l.self_attn.o_proj": EIGHT, "k.mlp.gate_proj": None}, "model")
    for other in (EIGHT, None):
        with pytest.raises(MoecError, match="stored differently") as caught:
            check_fused({one: FOUR, two: other}, "model")
        assert caught.value.code == "M206" and f"parts of {where} that" in caught.value.what
