"""The tensors of ModelOpt's form, decoded; algorithms and tensors that moec does not read."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from moec import open_source
from moec.dialect import dequantize_float
from moec.errors import MoecError
from moec.huggingface.formats.modelopt import decode
from moec.weights.lazy import from_tensor
from tests.huggingface.conftest import Saved

E4M3 = torch.float8_e4m3fn
NAME = "layer.weight"


def decoded(**tensors: Tensor) -> Tensor:
    found = decode({NAME + ending: from_tensor(value, ending) for ending, value in tensors.items()})
    assert list(found) == [NAME]
    return found[NAME].load()


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_number_for_all_of_nvfp4_multiplies(shape: tuple[int, ...]) -> None:
    """That of the compressed-tensors form divides."""
    codes, steps = torch.arange(96, dtype=torch.uint8).reshape(6, 16), numbers(6, 2).abs().to(E4M3)
    parts = {"": codes, "_scale": steps, "_scale_2": torch.full(shape, 0.25)}
    want = dequantize_float(codes, steps.view(torch.uint8), torch.tensor(0.25), format="nvfp4")
    assert torch.equal(decoded(**parts), want)
    assert not torch.equal(decoded(**parts | {"_scale_2": torch.tensor(4.0)}), want)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (6, 1)])
def test_fp8_has_one_scale_or_one_a_row(shape: tuple[int, ...]) -> None:
    codes, scale = numbers(6, 32).to(E4M3), numbers(*shape).abs() + 0.1
    want = codes.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(()))
    assert torch.equal(decoded(**{"": codes, "_scale": scale}), want)


@pytest.mark.parametrize("shape", [(), (6,), (6, 1)])
def test_fp8_is_float32_though_its_scale_has_16_bits(shape: tuple[int, ...]) -> None:
    """Products in the dtype of the scale are rounded."""
    codes, scale = numbers(6, 32).to(E4M3), (numbers(*shape).abs() + 0.1).bfloat16()
    want = codes.float() * (scale.float().reshape(-1, 1) if shape else scale.float())
    found = decoded(**{"": codes, "_scale": scale})
    assert found.dtype == torch.float32 and torch.equal(found, want)
    assert not torch.equal(want.bfloat16().float(), want)


@pytest.mark.parametrize(
    "spoiled",
    [{"_scale": torch.ones(6, 1).to(E4M3)}, {"_scale": torch.ones(6, 2)}, {"_scale_2": torch.ones(6)},
     {"_scale_2": torch.ones((), dtype=torch.int32)}, {"": torch.ones(6, 16)}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(spoiled: dict[str, Tensor]) -> None:
    parts = {"": torch.ones(6, 16, dtype=torch.uint8), "_scale": torch.ones(6, 2).to(E4M3), "_scale_2": torch.ones(())}
    assert decoded(**parts).shape == (6, 32)
    with pytest.raises(MoecError, match="do not fit") as caught:
        decoded(**parts | spoiled)
    assert caught.value.code == "M205"


def test_floats_that_are_none_are_refused() -> None:
    with pytest.raises(MoecError, match="no weight is in small floats"):
        decoded(**{"": torch.ones(6, 32)})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_algo": "W4A16_AWQ", "group_size": 128}, "W4A16_AWQ"),
        ({"quant_algo": "NVFP4", "group_size": 32}, "group_size is 32"),
        ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"lm_head": {"quant_algo": "MXFP8"}}}, "MXFP8"),
        ({"quant_algo": "MIXED_PRECISION"}, "no quantized_layers"),
        ({"quantization": {"quant_algo": "int4"}}, "INT4"),
    ],
)
def test_other_algorithms_are_refused_by_name(said: dict[str, Any], words: str, copied: Saved) -> None:
    folder = copied("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "modelopt"} | said})
    )
    with pytest.raises(MoecError, match=words) as caught:
        open_source(str(folder))
    assert caught.value.code == "M206"


@pytest.mark.parametrize("file", ["hf_quant_config.json", "config.json"])
def test_a_format_of_caches_alone_leaves_the_weights_as_they_are(file: str, copied: Saved) -> None:
    folder = copied("llama")
    config, want = json.loads((folder / "config.json").read_text()), open_source(str(folder))
    said = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    beside = {"producer": {"name": "modelopt"}, "quantization": said}
    inside = {**config, "quantization_config": {"quant_method": "modelopt", **said}}
    (folder / file).write_text(json.dumps(inside if file == "config.json" else beside))
    found, own = (each.origin.checkpoint.weights for each in (open_source(str(folder)), want))  # type: ignore[attr-defined]
    assert found.keys() == own.keys() and all(torch.equal(found[name].load(), own[name].load()) for name in own)
    beside["quantization"] = inside["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "FP8"}
    (folder / file).write_text(json.dumps(inside if file == "config.json" else beside))
    with pytest.raises(MoecError, match="no weight is in small floats"):
        open_source(str(folder))
