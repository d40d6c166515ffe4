"""What is filled matrix by matrix reads as what was put in; what does not fit is not taken."""

from __future__ import annotations

import torch

from moec.quantization.grid import Grid
from moec.quantization.packed_result import PackedResult, as_packed, tensors_of, unpacked
from moec.quantization.rounding import encode
from moec.weights.lazy import from_tensor

GPTQ = Grid(4, 16, True, "gptq")
MIXED = Grid(4, 16, False, "gptq", widths=(2, 4) * 2)


def test_each_expert_has_its_own_width() -> None:
    weight = torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(0))
    result = PackedResult(from_tensor(weight, "w"), MIXED)
    for e in (2, 0, 3, 1):
        codes = as_packed(encode(weight[e], MIXED.of(e)), MIXED.of(e))
        assert result.put(codes, e) and not result.put((codes[0][:1], *codes[1:]), e)
    packed = result.packed("text")
    whole = unpacked(packed, MIXED).load()
    assert all(torch.equal(whole[e], result.value(e)) for e in range(4))
    errors = [float((whole[e] - weight[e]).square().mean()) for e in range(4)]
    assert max(errors[1::2]) < min(errors[::2]) / 2, "the wider ones are closer"
    assert all(torch.equal(value, result.tensors()[name]) for name, value in tensors_of(packed).items())


def test_what_has_another_shape_or_dtype_is_made_anew() -> None:
    """`copy_` would broadcast the first and convert the second."""
    weight = from_tensor(torch.randn(8, 64), "w")
    codes = {"0.packed": torch.ones(8, 32, dtype=torch.uint8), "0.scale": torch.ones(8, 4)}
    result = PackedResult(weight, GPTQ)
    assert result.fill(codes) and all(map(torch.equal, codes.values(), (w.load() for w in result.packed("").parts())))
    for name, value in (
        ("0.scale", torch.zeros(1, 4)),
        ("0.scale", torch.zeros(8, 4, dtype=torch.float64)),
        ("0.zero", torch.zeros(8, 4, dtype=torch.uint8)),
    ):
        assert not result.fill({**codes, name: value})
    assert not result.fill({"0.packed": codes["0.packed"]})
    assert torch.equal(result.packed("").scale.load(), codes["0.scale"]), "nothing of it was taken"
