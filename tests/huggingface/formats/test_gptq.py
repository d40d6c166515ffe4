"""The tensors of a GPTQ checkpoint, decoded: numbers by the form's definition, and files that don't fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.formats.compressed_tensors import in_float32
from moec.huggingface.formats.gptq import Gptq, decode
from moec.weights.lazy import Weight, from_tensor

OUT, WIDTH = 32, 64


def words(numbers: Tensor, bits: int) -> Tensor:
    """Unsigned numbers packed along the leading dimension, lowest bits first, one after the other."""
    found = torch.zeros(numbers.shape[0] * bits // 32, numbers.shape[1], dtype=torch.int64)
    for row, value in enumerate(numbers.to(torch.int64)):
        found[row * bits // 32] += value << (row * bits % 32)
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)


def layer(bits: int, group: int, less_one: bool = True, symmetric: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of one layer, and its weight `[out, in]`."""
    generator = torch.Generator().manual_seed(bits)
    q = torch.randint(0, 2**bits, (WIDTH, OUT), generator=generator)
    zero = torch.randint(1, 2**bits, (WIDTH // group, OUT), generator=generator)
    zero = torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero
    scale = torch.rand(WIDTH // group, OUT, generator=generator).half()
    wanted = (q - zero.repeat_interleave(group, 0)) * scale.float().repeat_interleave(group, 0)
    stored = {
        "a.qweight": words(q, bits),
        "a.qzeros": words((zero - int(less_one)).t().contiguous(), bits).t().contiguous(),
        "a.scales": scale,
        "a.g_idx": (torch.arange(WIDTH) // group).to(torch.int32),
        "a.bias": torch.ones(OUT),
    }
    return stored, wanted.t()


def lazy(state: dict[str, Tensor]) -> dict[str, Weight]:
    return {n: from_tensor(t, n) for n, t in state.items()}


@pytest.mark.parametrize("less_one", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (4, 32), (8, 64)])
def test_numbers(bits: int, group: int, less_one: bool) -> None:
    stored, wanted = layer(bits, group, less_one)
    found = decode(lazy(stored), less_one)
    assert set(found) == {"a.weight", "a.bias"} and found["a.weight"].dtype == torch.float16
    assert torch.equal(in_float32(found["a.weight"]), wanted) and torch.equal(
        in_float32(found["a.weight"]).half()[5:9], found["a.weight"].read(5, 9)
    )
    assert not torch.equal(in_float32(decode(lazy(stored), not less_one)["a.weight"]), wanted)


def test_what_writers_borrowed_between_zero_points_comes_back() -> None:
    stored, _ = layer(4, 32)
    zero = torch.tensor([[0, 9, 15, 0, 0, 1, 8, 3] * 4] * 2)
    packed = words(zero.t().contiguous(), 4).t().contiguous()
    coded = decode(lazy({**stored, "a.qzeros": packed - 0x11111111}))["a.weight"].coded  # as a whole word is written
    assert coded is not None and coded.zero is not None and torch.equal(coded.zero.load(), zero.t().to(torch.uint8))


def test_a_symmetric_grid_keeps_no_zero_points() -> None:
    stored, wanted = layer(4, 32, symmetric=True)
    weight = decode(lazy(stored), symmetric=lambda _: True)["a.weight"]
    assert weight.coded is not None and weight.coded.zero is None and torch.equal(in_float32(weight), wanted)


def test_a_grid_that_is_not_symmetric_although_config_says_so() -> None:
    weight = decode(lazy(layer(4, 32)[0]), symmetric=lambda _: True)["a.weight"]
    with pytest.raises(MoecError, match="the zero points say otherwise"):
        weight.load()


def test_a_rule_says_which_layer_has_another_grid() -> None:
    (even, wanted), (odd, other) = layer(4, 32, symmetric=True), layer(4, 32)
    stored = lazy(even | {n.replace("a.", "b."): t for n, t in odd.items()})
    config = {"quant_method": "gptq", "sym": True, "dynamic": {"-:c": {}, "+:b$": {"sym": False}, "b": {"sym": True}}}
    found = Gptq().decode(stored, config)
    assert [found[n].coded.zero is None for n in ("a.weight", "b.weight")] == [True, False]  # type: ignore[union-attr]
    assert torch.equal(in_float32(found["a.weight"]), wanted) and torch.equal(in_float32(found["b.weight"]), other)
    with pytest.raises(MoecError, match="say otherwise"):
        Gptq().decode(stored, config | {"dynamic": {}})["b.weight"].load()


def test_without_an_order_of_inputs() -> None:
    stored, wanted = layer(4, 32)
    del stored["a.g_idx"]
    assert torch.equal(in_float32(decode(lazy(stored))["a.weight"]), wanted)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"a.g_idx": torch.arange(WIDTH, dtype=torch.int32) % 2}, "M206"),
        ({"a.qzeros": None}, "M205"),
        ({"a.scales": None}, "M205"),
        ({"a.qzeros": torch.zeros(2, 5, dtype=torch.int32)}, "M205"),
        ({"a.qweight": torch.zeros(8, OUT + 1, dtype=torch.int32)}, "M205"),
        ({"a.qweight": None}, "M205"),
        ({"a.scales": torch.ones(2, OUT, dtype=torch.int32)}, "M205"),
        ({"a.g_idx": torch.arange(WIDTH // 2, dtype=torch.int32) // 32}, "M205"),
        ({"a.g_idx": torch.arange(2 * WIDTH, dtype=torch.int32) // 32}, "M205"),
        ({"a.g_idx": torch.arange(WIDTH) / 32}, "M205"),
        ({"a.g_idx": (torch.arange(WIDTH) // 32).to(torch.int32)[None]}, "M205"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor | None], code: str) -> None:
    changed = {n: t for n, t in {**layer(4, 32)[0], **changes}.items() if t is not None}
    with pytest.raises(MoecError) as caught:
        decode(lazy(changed))
    assert caught.value.code == code and caught.value.fix
    assert code != "M206" or "desc_act=false" in caught.value.fix


@pytest.mark.parametrize(
    ("config", "words_"),
    [
        ({"bits": 4, "quant_method": "gptq", "desc_act": True}, ""),  # an order that is in use shows in g_idx
        ({"bits": 4, "quant_method": "gptq", "checkpoint_format": "gptq_v2"}, ""),
        ({"bits": 4, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}, ""),
        ({"bits": 3, "quant_method": "gptq"}, "3 bits"),
        ({"bits": 4, "quant_method": "gptq", "dynamic": {"-:gate$": {}, "+:.*up": {"bits": 8}}}, ""),
        ({"bits": 4, "quant_method": "gptq", "dynamic": {"-:gate(": {}}}, "no regular expression"),
        ({"bits": 4, "quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        ({"bits": 4, "quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}, "auto_awq"),
        (
            {"bits": 4, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "act_bits": 8},
            "activations",
        ),
    ],
)
def test_which_are_read(config: dict[str, Any], words_: str) -> None:
    assert (words_ in Gptq().why_not(config)) and bool(Gptq().why_not(config)) is bool(words_)


def test_the_config_decides_how_zero_points_are_stored() -> None:
    for config, less_one in [
        ({"quant_method": "gptq"}, True),
        ({"quant_method": "auto-round", "packing_format": "auto_round:gptqmodel"}, False),
    ]:
        stored, wanted = layer(4, 32, less_one)
        assert torch.equal(in_float32(Gptq().decode(lazy(stored), config)["a.weight"]), wanted)
