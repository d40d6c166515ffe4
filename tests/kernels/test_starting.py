"""Kernels that are written down instead of started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.kernels.checks import check_ids, check_route
from moec.kernels.starting import capability, is_recording, multiprocessors, on_device_of, recording, start, wide


class Kernel:
    """What `start` uses of a Triton function."""

    arg_names = ("x", "count", "BLOCK")

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **named: self.calls.append((grid, arguments, named))


def test_started_or_written_down() -> None:
    kernel, x = Kernel(), torch.empty(2, device="meta")
    with recording(90) as found:
        assert is_recording()
        start(kernel, (3,), x, 7, BLOCK=16, num_warps=2)
    assert kernel.calls == [] and not is_recording()
    (launch,) = found.launches
    assert (
        launch.grid == (3,)
        and launch.arguments == {"x": x, "count": 7, "BLOCK": 16}
        and launch.options == {"num_warps": 2}
    )
    start(kernel, (3,), x, 7, BLOCK=16)
    assert kernel.calls == [((3,), (x, 7), {"BLOCK": 16})] and len(found.launches) == 1


def test_a_recording_has_the_device_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording(120):
        assert capability(torch.device("meta")) == 120
        with recording(90):
            assert capability(torch.device("meta")) == 90
    assert capability(torch.device("cpu")) == 80
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 3))
    assert capability(torch.device("cuda:7")) == 103
    with on_device_of(torch.empty(1)):
        pass


def test_how_many_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=148))
    assert multiprocessors(torch.device("cpu")) == 2 and multiprocessors(torch.device("cuda:6")) == 148
    with recording(90):
        assert multiprocessors(torch.device("cuda:6")) == 2


def test_meta_tensors_are_only_for_recordings() -> None:
    given: Any = (
        torch.empty(2, 6, device="meta"),
        None,
        SimpleNamespace(top_groups=1, groups=1, top_k=2, group_score="max"),
    )
    with recording(90):
        check_route(*given)
    with pytest.raises(MoecError, match="run on CUDA"):
        check_route(*given)
    check_ids(torch.empty(0, 2), 6)


def test_widths_are_powers_of_two() -> None:
    assert [wide(n) for n in (0, 1, 2, 3, 8, 9, 128, 129)] == [1, 1, 2, 4, 8, 16, 128, 256]
