"""A refused capture names the line of the model, and only ways out that were tried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.module_source import ModuleSource, from_file


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for expert in self.experts:
            x = expert(x) if bool((x.sum() > 0) & (expert.weight.sum() > 0)) else x
        return x


class Fixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 7:
            return x * 2
        return x @ torch.ones(11, 11)


class FixesBoth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(3, 11) * 2.0


def refused(model: nn.Module, **shape: Any) -> MoecError:
    with pytest.raises(MoecError) as caught:
        ModuleSource(model, {"x": torch.ones(3, 11)}, {"x": ("batch", "width")}).capture()
    assert caught.value.code == "M207"
    return caught.value


def test_a_branch_on_data_is_no_loop_over_experts() -> None:
    error = refused(Branches())
    assert "if x.sum() > 0" in error.where and "test_refusals.py" in error.where
    assert "expert" not in error.fix and "dynamic" not in error.fix and "--input" not in error.fix


def test_a_loop_over_experts_is_one() -> None:
    error = refused(Loops())
    assert "expert" in error.where and "torch.ops.moec.experts" in error.fix


@pytest.mark.parametrize(("model", "fixed"), [(Fixes(), ("batch", None)), (FixesBoth(), (None, None))])
def test_a_size_that_helps_is_offered_and_helps(model: nn.Module, fixed: tuple[str | None, ...]) -> None:
    error = refused(model)
    given = re.search(r"pass dynamic=(\{.*\})", error.fix)
    assert given, error
    dynamic = eval(given[1])
    assert dynamic == {"x": fixed}
    program = ModuleSource(model, {"x": torch.ones(3, 11)}, dynamic).capture()
    x = torch.randn(program.inputs[0].resolve({"batch": 3}))
    assert torch.equal(program.run(x=x)["output"], model(x))


def test_a_file_is_offered_the_flag_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x @ torch.ones(11, 11)\n"
        "def make():\n    return Model()\n"
    )
    with pytest.raises(MoecError) as caught:
        from_file(f"{path}:make", ["x=batch,sequence:float32"]).capture()
    flags = re.findall(r"--input '([^']*)'", caught.value.fix)
    assert flags == ["x=batch,11:float32"]
    assert from_file(f"{path}:make", flags).capture().inputs[0].shape == ("batch", 11)
