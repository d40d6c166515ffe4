"""Modules that may be captured differently have different fingerprints; those that hide something have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.frontend.fingerprint import fingerprint
from moec.frontend.plain_sizes import NotPlainError

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "twice": lambda x: x * 2, "thrice": lambda x: x * 3, "down": lambda x: x.floor(), "up": lambda x: x.ceil(),
    "added": lambda x: sum([y + 1 for y in x.split(1)], x), "taken": lambda x: sum([y - 1 for y in x.split(1)], x),
    "member": lambda x: x if x.shape[0] in {"a", "b", 1} else -x,
}  # fmt: skip


class Kind(Enum):
    ONE = 1
    TWO = 2


@dataclass
class Settings:
    width: int = 4


class Net(nn.Module):
    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale, self.kind, self.act, self.sizes, self.settings = 0.5, Kind.ONE, F.gelu, [1, 2], Settings()
        self.round, self.table = partial(torch.round, decimals=1), torch.arange(3.0)
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x))) * self.scale


def tied() -> Net:
    net = Net()
    net.second.weight = net.first.weight
    return net


CHANGES: list[Callable[[], nn.Module]] = [
    lambda: Net(scale=0.25), lambda: Net(kind=Kind.TWO), lambda: Net(act=F.silu), lambda: Net(sizes=[1, 3]),
    lambda: Net(settings=Settings(8)), lambda: Net(round=partial(torch.round, decimals=2)), tied,
    lambda: Net(table=torch.arange(3.0) + 1), lambda: Net(first=nn.Linear(4, 4, bias=False)), lambda: Net().double(),
    lambda: Net(first=nn.Sequential(nn.Linear(4, 4))), lambda: Net().eval(),
    *(lambda act=act: Net(act=act) for act in ACTS.values()),  # type: ignore[misc]
]  # fmt: skip


def test_parameters_do_not_count_and_all_else_does() -> None:
    own = fingerprint(Net())
    assert own == fingerprint(Net()), "other random numbers"
    others = [fingerprint(make()) for make in CHANGES]
    assert len({own, *others}) == len(CHANGES) + 1


def hooked() -> Net:
    net = Net()
    net.first.register_forward_hook(lambda *_: None)
    return net


def closed() -> Net:
    factor = 3.0
    return Net(act=lambda x: x * factor)


@pytest.mark.parametrize("make", [hooked, closed, lambda: Net(thing=object()), lambda: Net(table=torch.zeros(2**19))])
def test_what_hides_something_has_none(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(NotPlainError):
        fingerprint(make())
