"""What contexts of a plan tell the library, with a stand-in for its objects; no GPU runs them here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moec.backends.tensorrt.profiles import profiles
from moec.backends.tensorrt.session.plan_context import Plan, PlanContext
from moec.errors import MoecError
from moec.program.program import Input

INPUTS = (Input("x", torch.float32, ("batch", 4)),)
LIBRARY = SimpleNamespace(
    float32="f32", ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user", STATIC="static")
)


class Context:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.memory: list[tuple[int, int]] = []
        self.profile = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes.append(shape)
        return True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[-1]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        return memory != 0

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory.append((memory, size))


class Engine:
    """As many contexts as the GPU has memory for."""

    def __init__(self, room: int = 9) -> None:
        self.made: list[tuple[str, Context]] = []
        self.room = room

    def create_execution_context(self, strategy: str = "static") -> Context | None:
        if len(self.made) == self.room:
            return None
        self.made.append((strategy, Context()))
        return self.made[-1][1]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 64 * (index + 1)

    def get_tensor_dtype(self, name: str) -> str:
        return "f32"


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(PlanContext, "device", "cpu")
    engine = Engine()
    found = tuple(profiles(INPUTS, {"batch": 8}))
    stream = SimpleNamespace(cuda_stream=7)
    return PlanContext(
        Plan("engine", engine, LIBRARY, INPUTS, ("y",), found, stream), engine.create_execution_context()
    )


def test_contexts_apart_share_their_memory_and_nothing_else(main: Any) -> None:
    one, other = main.apart(), main.apart()
    made = main._plan.engine.made
    assert [strategy for strategy, _ in made] == ["static", "user", "user"]
    assert made[1][1].memory == made[2][1].memory == [(main._plan.scratch.data_ptr(), 64)]
    one.bind(1, {"x": torch.ones(1, 4)}, {})
    other.bind(2, {"x": torch.ones(1, 4)}, {})
    assert (one.bound, other.bound, main.bound) == (1, 2, None)
    assert len(made[1][1].shapes) == len(made[2][1].shapes) == 1 and made[0][1].shapes == []


def test_without_memory_for_another_it_is_itself(main: Any) -> None:
    main._plan.engine.room = 1
    assert main.apart() is main


def test_a_call_gets_the_profile_that_holds_it(main: Any) -> None:
    main.bind(None, {"x": torch.ones(3, 4)}, {})
    assert main._plan.engine.made[0][1].profile == 1
    with pytest.raises(MoecError, match="outside of the engine's profiles"):
        main.bind(None, {"x": torch.ones(9, 4)}, {})
