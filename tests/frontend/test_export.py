"""Capture: names, dynamic dimensions, shared weights, buffers, and what torch.export refuses."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.export import capture
from moec.frontend.from_exported import from_exported, named_outputs
from moec.weights.lazy import from_tensor

IDS = torch.zeros(3, 11, dtype=torch.int64)
ROWS = {"x": ("batch", None)}


class Tied(nn.Module):
    """An embedding whose table is the head's matrix too, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("shift", torch.randn(8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids) + self.shift)


class Returns(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        a, b = x + 1, x * 2
        return {
            "tensor": a,
            "tuple": (a, b),
            "dict": {"logits": a, "state": b},
            "nested": {"logits": a, "states": (a, b)},
            "none": (a, None),
        }[self.form]


def test_runs_at_other_sizes_and_equals_the_model() -> None:
    model = Tied().eval()
    program = capture(model, {"ids": IDS}, {"ids": ("batch", "sequence")})
    assert [(i.name, i.dtype, i.shape) for i in program.inputs] == [("ids", torch.int64, ("batch", "sequence"))]
    for shape in ((1, 1), (2, 5), (4, 30)):
        ids = torch.randint(0, 20, shape)
        assert torch.allclose(program.run(ids=ids)["output"], model(ids), atol=1e-6)
    want = model(ids)
    model.get_buffer("shift").add_(1)  # the mutant: a program that had not read the buffer would not notice
    assert not torch.allclose(program.run(ids=ids)["output"], want, atol=1e-6)


def test_tied_weights_are_one_and_buffers_are_weights() -> None:
    program = capture(Tied(), {"ids": IDS})
    assert len({id(w) for w in program.weights.values()}) == 2
    assert "shift" in program.weights and all(p.device.type == "meta" for p in program.graph_module.buffers())


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("tensor", ["output"]),
        ("tuple", ["output_0", "output_1"]),
        ("dict", ["logits", "state"]),
        ("nested", ["logits", "states_0", "states_1"]),
        ("none", ["output_0"]),
    ],
)
def test_names_of_outputs_are_those_of_the_eager_model(form: str, names: list[str]) -> None:
    model, x = Returns(form), torch.randn(3, 4)
    program = capture(model, {"x": x}, ROWS)
    assert list(program.outputs) == names
    eager, found = named_outputs(model(x)), program.run(x=x)
    assert list(eager) == names and all(torch.equal(eager[n], found[n]) for n in names)


def test_inputs_by_position_get_their_parameters_names() -> None:
    assert [i.name for i in capture(Returns("tensor"), [torch.randn(3, 4)], ROWS).inputs] == ["x"]


class Positions(nn.Module):
    """At most 16 positions, as BERT has 512."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[: ids.shape[1]] + ids.unsqueeze(-1)


def test_a_bounded_dimension_gets_the_bound_that_it_needs() -> None:
    model = Positions()
    program = capture(model, {"ids": IDS}, {"ids": ("batch", "sequence")})
    for length in (1, 16):
        ids = torch.randint(0, 5, (2, length))
        assert torch.equal(program.run(ids=ids)["output"], model(ids))


class Fixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, -1) * torch.ones(3, 1)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("model", [Fixes(), Branches()], ids=["fixed dimension", "branch on data"])
def test_what_cannot_be_captured_is_refused(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MoecError) as caught:
        capture(model, {"x": torch.randn(3, 4)}, ROWS)
    assert caught.value.code == "M207"
    assert "\n" not in caught.value.what
    assert capsys.readouterr().err == ""  # torch's own dump of the graph stays out of the way


class Reserved(nn.Module):
    """A part of it has the name of what every graph module of torch has."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.part = name
        setattr(self, name, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Any:
        return getattr(self, self.part)(x)


@pytest.mark.parametrize("name", ["code", "graph"])
def test_a_part_of_a_reserved_name_is_refused_and_the_way_out_is_one(name: str) -> None:
    given = {"x": torch.randn(3, 4)}
    with pytest.raises(MoecError, match=f"a part named '{name}'") as caught:
        capture(Reserved(name), given, ROWS)
    assert caught.value.code == "M207" and caught.value.fix == f"rename it, for example to {name}_"
    model = Reserved(f"{name}_")
    assert capture(model, given, ROWS).run(**given)["output"].equal(model(given["x"]))


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise MoecError("M206", "another scan", "mixer", "report it")


def test_a_refusal_of_moecs_own_stays_what_it_is() -> None:
    with pytest.raises(MoecError) as caught:
        capture(Refuses(), {"x": torch.randn(3, 4)}, ROWS)
    assert (caught.value.code, caught.value.what, caught.value.where) == ("M206", "another scan", "mixer")


class Reshapes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(4, 4)


def test_a_dimension_that_the_model_fixes_is_named() -> None:
    with pytest.raises(MoecError) as caught:
        capture(Reshapes(), {"x": torch.randn(3, 4)}, {"x": ("batch", "width")})
    assert caught.value.code == "M207"
    assert "width" in str(caught.value)


def test_only_tensors_are_inputs() -> None:
    class Repeats(nn.Module):
        def forward(self, x: Tensor, times: int) -> Tensor:
            return x * times

    with pytest.raises(MoecError, match="times"):
        capture(Repeats(), {"x": torch.randn(3, 4), "times": 3})  # type: ignore[dict-item]


def test_lazy_weights_of_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Linear(4, 2)
    w, b = torch.randn(2, 4), torch.randn(2)
    program = capture(
        model,
        {"input": torch.randn(3, 4)},
        {"input": ("batch", None)},
        weights={"weight": from_tensor(w, "w"), "bias": from_tensor(b, "b")},
    )
    x = torch.randn(5, 4)
    assert torch.allclose(program.run(input=x)["output"], x @ w.T + b, atol=1e-6)
    with pytest.raises(MoecError) as caught:
        capture(model, {"input": torch.randn(3, 4)}, weights={"weight": from_tensor(w, "w")})
    assert caught.value.code == "M205" and "bias" in caught.value.where


def test_the_model_is_captured_in_eval_mode() -> None:
    program = capture(nn.Sequential(nn.Dropout(0.5)), {"input": torch.randn(3, 4)})
    assert torch.equal(program.run(input=torch.ones(3, 4))["output"], torch.ones(3, 4))


def test_a_pt2_file() -> None:
    model, batch = Tied().eval(), torch.export.Dim("batch")
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (IDS,), dynamic_shapes={"ids": {0: batch}}), file)
    file.seek(0)
    program = from_exported(torch.export.load(file), source="model.pt2")
    assert program.source == "model.pt2" and program.inputs[0].name == "ids"
    assert isinstance(program.inputs[0].shape[0], str) and program.inputs[0].shape[1] == 11
    ids = torch.randint(0, 20, (5, 11))
    assert torch.allclose(program.run(ids=ids)["output"], model(ids), atol=1e-6)
