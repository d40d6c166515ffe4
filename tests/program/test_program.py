"""Programs: checked, printed, cloned, run, and their weights shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moec import open_source
from moec.errors import MoecError
from moec.frontend.export import capture
from moec.program.program import Input, Program, users
from moec.weights.lazy import from_tensor, scale


class Tied(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.table(ids)))


def make() -> Program:
    return capture(Tied(), {"ids": torch.zeros(3, 11, dtype=torch.int64)}, {"ids": ("batch", "sequence")})


def table_of(program: Program) -> str:
    return next(iter(program.weights))


def test_text_and_digest_are_equal_for_equal_programs_only() -> None:
    first, again = make(), make()
    assert first.text() == again.text() and first.digest() == again.digest()
    assert "# inputs: ids: int64['batch', 'sequence']" in first.text() and "aten.relu" in first.text()
    name = table_of(again)
    again.weights[name] = scale(again.weights[name], 2.0)  # the graph stays as it is
    assert again.digest() != first.digest()


def test_a_clone_is_rewritten_apart() -> None:
    program = make()
    before, copy = program.digest(), program.clone()
    relu = copy.nodes(torch.ops.aten.relu.default)[0]
    relu.replace_all_uses_with(relu.args[0])
    copy.finish()
    copy.check()
    assert program.digest() == before != copy.digest()
    assert not copy.nodes(torch.ops.aten.relu) and program.nodes(torch.ops.aten.relu)
    ids = torch.randint(0, 20, (2, 4))
    assert not torch.equal(program.run(ids=ids)["output"], copy.run(ids=ids)["output"])


def test_shared_weights_stay_shared_when_loaded() -> None:
    module = make().module(trainable=True)
    assert len(list(module.parameters())) == 1
    assert not list(make().module().parameters())
    assert {t.device.type for t in make().module("meta").buffers()} == {"meta"}


def test_a_trainable_module_does_not_touch_the_programs_weights() -> None:
    program = make()
    module, name = program.module(trainable=True), table_of(program)
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert program.weights[name].load().abs().sum() > 0


def test_added_weights_get_free_names_and_unused_ones_go() -> None:
    program = make()
    weight = from_tensor(torch.ones(2), "ones")
    assert [program.add_weight("a.b", weight), program.add_weight("a.b", weight)] == ["a.b", "a.b_1"]
    program.finish()
    assert "a.b" not in program.weights and not hasattr(program.graph_module.a, "b")
    program.check()


def test_weight_of() -> None:
    program = make()
    embedding = program.nodes(torch.ops.aten.embedding.default)[0]
    assert program.weight_of(embedding.args[0]) is program.weights[table_of(program)]
    assert program.weight_of(embedding) is None and program.weight_of(3) is None


def test_users_are_all_readers() -> None:
    program = make()
    relu = program.nodes(torch.ops.aten.relu.default)[0]
    assert users([relu]) == set(relu.users) != set()


def drop_weight(program: Program) -> None:
    del program.weights[table_of(program)]


def call_a_method(program: Program) -> None:
    relu = program.nodes(torch.ops.aten.relu.default)[0]
    relu.op, relu.target = "call_method", "relu"


def rename_an_input(program: Program) -> None:
    program.inputs = (Input("tokens", torch.int64, ("batch", "sequence")),)


def forget_an_output(program: Program) -> None:
    program.outputs = ()


@pytest.mark.parametrize("spoil", [drop_weight, call_a_method, rename_an_input, forget_an_output])
def test_a_malformed_program_is_refused(spoil: Callable[[Program], None]) -> None:
    program = make()
    program.check()
    spoil(program)
    with pytest.raises(MoecError) as caught:
        program.check()
    assert caught.value.code == "M702" and "after capture" in caught.value.where


def test_an_inputs_shape_is_resolved() -> None:
    assert Input("x", torch.float32, ("batch", 3)).resolve({"batch": 5}) == (5, 3)


class Joined(nn.Module):
    def forward(self, new: Tensor, past: Tensor) -> dict[str, Tensor]:
        return {"all": torch.cat([new, past], 1), "first": (past > 0)[:, 0], "square": new.mT}


def test_outputs_have_the_names_of_the_inputs_dimensions_and_sums_of_them() -> None:
    inputs = {"new": torch.randn(3, 11, 4), "past": torch.randn(3, 7, 4)}
    program = capture(Joined(), inputs, {"new": ("batch", "new", None), "past": ("batch", "old", None)})
    assert program.output_signature() == (
        Input("all", torch.float32, ("batch", "new + old", 4)),
        Input("first", torch.bool, ("batch", 4)),
        Input("square", torch.float32, ("batch", 4, "new")),
    )


def test_a_sum_has_the_name_that_an_input_gives_it(mixtral: Path) -> None:
    program = open_source(str(mixtral)).capture()
    found = {o.name: o for o in program.output_signature()}
    mask = next(i for i in program.inputs if i.name == "attention_mask")
    assert found["present.0.key"].shape == ("batch", 2, mask.shape[1], 8) and "past" in str(mask.shape[1])
    assert found["logits"].shape == ("batch", "sequence", 96)
