"""Bytes of a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.huggingface.shape import shape_of
from moec.planning.devices import Device
from moec.planning.formats import FORMATS, with_state
from moec.planning.memory import memory_of
from moec.planning.shape import Shape
from tests.planning import configs, published


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return shape_of(str(configs.write(tmp_path_factory.mktemp("mixtral"), configs.MIXTRAL)))


def test_the_cache_of_published_models(mixtral: Shape, tmp_path: Path) -> None:
    assert memory_of(mixtral, FORMATS["bf16"], 3, 1000).state == 3 * 1000 * 131_072
    deepseek = shape_of(str(configs.write(tmp_path, configs.DEEPSEEK_V3)))
    assert memory_of(deepseek, FORMATS["bf16"], 1, 10).state == 10 * 70_272  # compressed, not what it unpacks to


def test_weights_are_all_there_though_few_are_active(mixtral: Shape) -> None:
    assert memory_of(mixtral, FORMATS["bf16"], 1, 1).weights == 2 * 46_702_792_704


def test_devices_are_counted_by_what_is_free_on_each(mixtral: Shape) -> None:
    memory = memory_of(mixtral, FORMATS["bf16"], 1, 4096)
    room = memory.total - memory.runtime
    just, half = (Device("x", (room / n + memory.runtime) / 2**30 + 1e-6, 1, {16: 1}) for n in (1, 2))
    assert memory.devices(just) == 1 and memory.devices(half) == 2
    less = Device("x", just.memory * 0.999, 1, {16: 1})
    assert memory.devices(less) == 2 and memory.devices(Device("x", 0.5, 1, {16: 1})) == 0


@pytest.mark.parametrize(("state", "bits"), [("bf16", 16), ("fp8", 8), ("int8", 8.25)])
def test_the_state_in_fewer_bits(mixtral: Shape, state: str, bits: float) -> None:
    memory = memory_of(mixtral, with_state(FORMATS["bf16"], state), 2, 1000)
    assert memory.state == 2 * 1000 * 65_536 * bits / 8
    assert memory.weights == memory_of(mixtral, FORMATS["bf16"], 2, 1000).weights


def test_what_does_not_grow_keeps_its_bits_and_an_unknown_state_has_neighbours(tmp_path: Path) -> None:
    nemotron = shape_of(str(configs.write(tmp_path, published.NEMOTRON_H)))
    fixed = 23 * (4 * 64 * 64 * 128 + 2 * 4 * 6144)  # recurrent states in float32, as the model has them; windows in 16
    found = memory_of(nemotron, with_state(FORMATS["bf16"], "fp8"), 1, 100)
    assert found.state == fixed + 100 * 6 * 2 * 2 * 128
    with pytest.raises(MoecError, match="M202") as refused:
        with_state(FORMATS["bf16"], "fp9")
    assert "fp8" in refused.value.fix
