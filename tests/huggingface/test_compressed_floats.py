"""Small floats of compressed-tensors files, also as other writers lay them out; what does not fit is refused."""

from __future__ import annotations

import pytest
import torch

from moec.dialect import dequantize_float
from moec.errors import MoecError
from moec.huggingface.compressed_floats import decode_floats, why_not_floats
from moec.weights.lazy import from_tensor
from moec.weights.weight import Weight

E4M3 = torch.float8_e4m3fn
NAME = "layer.weight"


def stored(**tensors: torch.Tensor) -> dict[str, Weight]:
    return {f"{NAME}{ending}": from_tensor(value, ending) for ending, value in tensors.items()}


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(6, 1), (1,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_has_one_scale_a_row_or_one_for_all(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    codes, scale = numbers(6, 32).to(E4M3), (numbers(*shape).abs() + 0.1).to(dtype)
    found = decode_floats({NAME: from_tensor(codes, "codes"), **stored(_scale=scale)})
    want = codes.to(dtype) * scale
    assert list(found) == [NAME] and torch.equal(found[NAME].load(), want)
    assert torch.equal(found[NAME].read(2, 5), want[2:5])


@pytest.mark.parametrize("shape", [(3, 6, 1), (1, 1)])
def test_fp8_of_a_stack_and_of_one_number_in_brackets(shape: tuple[int, ...]) -> None:
    codes, scale = numbers(3, 6, 32).to(E4M3), numbers(*shape).abs() + 0.1
    found = decode_floats({NAME: from_tensor(codes, "codes"), **stored(_scale=scale)})
    assert torch.equal(found[NAME].load(), codes.float() * scale)


def test_floats_that_are_none_are_refused() -> None:
    with pytest.raises(MoecError, match="no tensor is one"):
        decode_floats({NAME: from_tensor(torch.ones(6, 32), "plain"), **stored(_scale=torch.ones(6, 1))})


def test_the_global_scale_of_nvfp4_divides() -> None:
    codes, steps = torch.arange(96, dtype=torch.uint8).reshape(6, 16), numbers(6, 2).abs().to(E4M3)
    parts = {"_packed": codes, "_scale": steps, "_global_scale": torch.tensor([4.0])}
    found = decode_floats(stored(**parts))
    want = dequantize_float(codes, steps.view(torch.uint8), torch.tensor(0.25), format="nvfp4")
    assert list(found) == [NAME] and torch.equal(found[NAME].load(), want)
    assert not torch.equal(decode_floats(stored(**parts | {"_global_scale": torch.tensor([0.25])}))[NAME].load(), want)


@pytest.mark.parametrize(
    "spoiled",
    [{"_scale": torch.ones(6, 1).to(E4M3)}, {"_scale": torch.ones(6, 2)}, {"_packed": torch.ones(6, 16)},
     {"_global_scale": torch.ones(6)}, {"_global_scale": torch.ones(1, dtype=torch.int32)}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(spoiled: dict[str, torch.Tensor]) -> None:
    parts = {
        "_packed": torch.ones(6, 16, dtype=torch.uint8), "_scale": torch.ones(6, 2).to(E4M3),
        "_global_scale": torch.ones(1),
    }  # fmt: skip
    with pytest.raises(MoecError, match="do not fit") as caught:
        decode_floats(stored(**parts | spoiled))
    assert caught.value.code == "M205"


@pytest.mark.parametrize("dtype", [torch.int32, E4M3])
def test_fp8_with_scales_of_another_kind_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(MoecError, match="do not fit"):
        decode_floats(
            {NAME: from_tensor(torch.ones(6, 32).to(E4M3), "codes"), **stored(_scale=torch.ones(6, 1).to(dtype))}
        )


def test_fp8_without_a_scale_is_refused() -> None:
    with pytest.raises(MoecError, match="scales none"):
        decode_floats({NAME: from_tensor(torch.ones(6, 32).to(E4M3), "codes")})


@pytest.mark.parametrize(
    ("form", "weights", "reads"),
    [
        ("naive-quantized", {"num_bits": 8, "strategy": "channel"}, True),
        ("float-quantized", {"num_bits": 8, "strategy": "tensor"}, True),
        ("float-quantized", {"num_bits": 8, "strategy": "block"}, False),
        ("nvfp4-pack-quantized", {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}, True),
        ("nvfp4-pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, False),
    ],
)
def test_what_is_read(form: str, weights: dict[str, object], reads: bool) -> None:
    assert (why_not_floats("group_0", form, weights) == "") is reads
