"""The tensors of a compressed-tensors checkpoint, decoded: what the format's library packs, and files that don't
fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.formats.compressed_tensors import decode, in_float32, in_short_groups
from moec.weights.lazy import decoded, from_tensor

OUT, WIDTH = 20, 256  # 20 rows: zero points of 4 bits fill two words and a half


def numbers(bits: int, *shape: int) -> Tensor:
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=torch.Generator().manual_seed(bits)).to(
        torch.int8
    )


def packed_by_library(
    bits: int, group: int, zeros: bool, width: int = WIDTH, dtype: torch.dtype = torch.bfloat16
) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of one layer, and its weight in float32."""
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason="compressed-tensors is not installed"
    )
    q, groups = numbers(bits, OUT, width), width // group
    scale = torch.randn(OUT, groups, generator=torch.Generator().manual_seed(1)).to(dtype)
    zero = numbers(bits, OUT, groups) if zeros else torch.zeros(OUT, groups, dtype=torch.int8)
    state = {
        "a.weight_packed": helpers.pack_to_int32(q, bits),
        "a.weight_scale": scale,
        "a.weight_shape": torch.tensor([OUT, width]),
    }
    if zeros:
        state["a.weight_zero_point"] = helpers.pack_to_int32(zero, bits, packed_dim=0)
    centred = q.float().reshape(OUT, groups, group) - zero.float()[..., None]
    return {**state, "b.weight": torch.ones(3)}, (centred * scale.float()[..., None]).flatten(1)


def lazy(state: dict[str, Tensor]) -> dict[str, object]:
    return {n: from_tensor(t, n) for n, t in state.items()}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (4, 32), (4, 128), (8, 64), (8, 256)])
def test_numbers(bits: int, group: int, zeros: bool) -> None:
    state, wanted = packed_by_library(bits, group, zeros)
    found = decode(lazy(state))  # type: ignore[arg-type]
    assert (
        set(found) == {"a.weight", "b.weight"}
        and found["a.weight"].shape == (OUT, WIDTH)
        and found["a.weight"].dtype == torch.bfloat16
    )
    assert torch.equal(in_float32(found["a.weight"]), wanted)
    assert torch.equal(found["a.weight"].read(3, 7), found["a.weight"].load()[3:7])
    coded = found["a.weight"].coded
    assert coded is not None and coded.scale.shape[1] == WIDTH // min(group, 128)  # no kernel has longer groups


def test_a_shifted_code_is_seen() -> None:
    state, wanted = packed_by_library(4, 32, True)
    state["a.weight_zero_point"] = state["a.weight_zero_point"] ^ 1
    assert not torch.equal(in_float32(decode(lazy(state))["a.weight"]), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 4])
def test_words_that_rows_do_not_fill(bits: int) -> None:
    state, wanted = packed_by_library(bits, 24, False, width=24, dtype=torch.float32)
    assert torch.equal(in_float32(decode(lazy(state))["a.weight"]), wanted)  # type: ignore[arg-type]


def test_a_scale_for_a_whole_row_is_repeated() -> None:
    state, _ = packed_by_library(4, WIDTH, True)
    coded = decode(lazy(state))["a.weight"].coded  # type: ignore[arg-type]
    assert coded is not None and coded.zero is not None and coded.scale.shape == coded.zero.shape == (OUT, 2)
    odd = in_short_groups(
        from_tensor(torch.zeros(2, 150, dtype=torch.uint8), "q"), from_tensor(torch.ones(2, 1), "s"), None, 4
    )
    assert odd.scale.shape == (2, 1) and decoded(odd).shape == (
        2,
        300,
    )  # nothing divides it: left to the target to refuse


def spoiled() -> Iterator[tuple[str, dict[str, Tensor | None], str]]:
    yield "no scale", {"a.weight_scale": None}, "M205"
    yield "no shape", {"a.weight_shape": None}, "M205"
    yield "another shape", {"a.weight_shape": torch.tensor([OUT, WIDTH + 8])}, "M205"
    yield "scales of fewer rows", {"a.weight_scale": torch.ones(OUT - 1, 8)}, "M205"
    yield "groups that do not divide", {"a.weight_scale": torch.ones(OUT, 7)}, "M205"
    yield "scales of integers", {"a.weight_scale": torch.ones(OUT, 8, dtype=torch.int32)}, "M205"
    yield "zero points of fewer groups", {"a.weight_zero_point": torch.zeros(3, 7, dtype=torch.int32)}, "M205"
    yield "zero points of floats", {"a.weight_zero_point": torch.zeros(3, 8)}, "M205"
    yield "floats", {"a.weight_packed": torch.ones(OUT, WIDTH // 8)}, "M205"
    yield "act-order", {"a.weight_g_idx": torch.zeros(WIDTH, dtype=torch.int32)}, "M206"


@pytest.mark.parametrize(("changes", "code"), [pytest.param(c, code, id=name) for name, c, code in spoiled()])
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor | None], code: str) -> None:
    state = {
        "a.weight_packed": torch.zeros(OUT, WIDTH // 8, dtype=torch.int32), "a.weight_scale": torch.ones(OUT, 8),
        "a.weight_shape": torch.tensor([OUT, WIDTH]),
    }  # fmt: skip
    assert decode(lazy(state))  # type: ignore[arg-type]
    changed = {n: t for n, t in {**state, **changes}.items() if t is not None}
    with pytest.raises(MoecError) as caught:
        decode(lazy(changed))  # type: ignore[arg-type]
    assert caught.value.code == code and caught.value.fix
