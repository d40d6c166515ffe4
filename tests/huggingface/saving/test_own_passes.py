"""Passes of one's own: what they do to weights is saved, what they do to operators is not silently lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.huggingface.gguf.write import save_gguf
from moec.huggingface.saving.save import save_hf
from moec.passes.quantize import Quantize
from moec.pipeline.passes import Context, Pass
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.weights import lazy
from tests import zoo

SIZES = {"batch": 2, "sequence": 9}
aten = torch.ops.aten


@dataclass(frozen=True)
class Halve(Pass):
    """The last matrices of the experts, half as large."""

    contract = "approximate"

    def apply(self, program: Program, context: Context) -> int:
        found = [name for name in program.weights if name.endswith("down_proj")]
        program.weights |= {name: lazy.scale(program.weights[name], 0.5) for name in found}
        return len(found)


@dataclass(frozen=True)
class Sharpen(Pass):
    """Every router's weights, times 1.7: an argument of an operator."""

    contract = "approximate"

    def apply(self, program: Program, context: Context) -> int:
        found = program.nodes(torch.ops.moec.route.default)
        for node in found:
            node.kwargs = {**node.kwargs, "scale": 1.7}
        return len(found)


@dataclass(frozen=True)
class Quieter(Pass):
    """Logits, half as large: another operator."""

    contract = "approximate"

    def apply(self, program: Program, context: Context) -> int:
        (node,) = [n for n in program.graph.nodes if n.op == "output"]
        logits, *rest = node.args[0]
        with program.graph.inserting_before(node):
            half = program.graph.call_function(aten.mul.Tensor, (logits, 0.5))
        half.meta = dict(logits.meta)
        node.args = ((half, *rest),)
        return 1


@dataclass(frozen=True)
class Rescale(Pass):
    """The first matrix after attention, twice as large, and its results, half as large: exact, by an operator."""

    def apply(self, program: Program, context: Context) -> int:
        (name, *_) = [n for n in program.weights if n.endswith("o_proj.weight")]
        (product,) = [n for n in program.nodes(aten.linear.default) if getattr(n.args[1], "target", "") == name]
        program.weights[name] = lazy.scale(program.weights[name], 2.0)
        with program.graph.inserting_after(product):
            half = program.graph.call_function(aten.mul.Tensor, (product, 0.5))
        half.meta = dict(product.meta)
        product.replace_all_uses_with(half, delete_user_cb=lambda user: user is not half)
        return 1


@dataclass(frozen=True)
class Twice(Pass):
    """Logits times two times a half: exact, and no weight is another."""

    def apply(self, program: Program, context: Context) -> int:
        (node,) = [n for n in program.graph.nodes if n.op == "output"]
        logits, *rest = node.args[0]
        for factor in (2.0, 0.5):
            with program.graph.inserting_before(node):
                made = program.graph.call_function(aten.mul.Tensor, (logits, factor))
            made.meta = dict(logits.meta)
            logits = made
        node.args = ((logits, *rest),)
        return 1


@dataclass(frozen=True)
class Stretch(Pass):
    """The frequencies of the rotary embedding, times so much."""

    contract = "approximate"
    factor: float = 0.5

    def apply(self, program: Program, context: Context) -> int:
        name = "model.rotary_emb.inv_freq"
        program.weights[name] = lazy.scale(program.weights[name], self.factor)
        return 1


MINE: Any = type("Mine", (Quantize,), {"__doc__": "moec's pass under another name."})


def of(*passes: Pass) -> Program:
    before = Pipeline.parse("find-moe").passes
    return Pipeline((*before, *passes)).run(zoo.captured("mixtral", cache=False), Context())[0]


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
@pytest.mark.parametrize("more", [(), (MINE(bits=8, group=16),)], ids=["", "packed"])
def test_weights_of_a_pass_of_ones_own_are_saved(name: str, more: tuple[Pass, ...], tmp_path: Path) -> None:
    source, program = zoo.source("mixtral", cache=False), of(Halve(), *more)
    assert not any(step.rewires for step in program.history)
    if name == "folder":
        save_hf(program, tmp_path / name, source)
    elif more:
        with pytest.raises(MoecError, match="groups of 16"):
            save_gguf(program, tmp_path / name, source, floats="f32")
        return
    else:
        save_gguf(program, tmp_path / name, source, floats="f32")
    sample = source.sample(SIZES)
    found = open_source(str(tmp_path / name), cache=False).reference()(**sample)["logits"]
    want, untouched = (program.run(**sample)["logits"], source.reference()(**sample)["logits"])
    assert float((found - want).abs().max() / want.std()) < 1e-4
    assert float((found - untouched).abs().max() / want.std()) > 0.1


@pytest.mark.parametrize("item", [Sharpen(), Quieter(), Rescale()], ids=str)
@pytest.mark.parametrize("more", [(), (Quantize(bits=8, group=16),)], ids=["", "packed"])
def test_operators_of_a_pass_of_ones_own_are_refused(item: Pass, more: tuple[Pass, ...], tmp_path: Path) -> None:
    source, program = zoo.source("mixtral", cache=False), of(item, *more)
    assert [step.name for step in program.history if step.rewires] == [item.name]
    for save in (save_hf, save_gguf):
        with pytest.raises(MoecError, match=f"what {item.name} does is no weight") as caught:
            save(program, tmp_path / "out", source)
        assert caught.value.code == "M206" and not (tmp_path / "out").exists()


def test_operators_of_an_exact_pass_that_changes_no_weight_are_not_in_the_way(tmp_path: Path) -> None:
    source, program = zoo.source("mixtral", cache=False), of(Twice(), Halve())
    assert not any(step.rewires for step in program.history)
    save_hf(program, tmp_path / "out", source)
    sample = source.sample(SIZES)
    found = open_source(str(tmp_path / "out"), cache=False).reference()(**sample)["logits"]
    want = program.run(**sample)["logits"]
    assert float((found - want).abs().max() / want.std()) < 1e-4


@pytest.mark.parametrize("more", [(), (Halve(),)], ids=["", "weights too"])
def test_numbers_that_no_checkpoint_holds_are_refused(more: tuple[Pass, ...], tmp_path: Path) -> None:
    source, program = zoo.source("mixtral", cache=False), of(Stretch(), *more)
    for save in (save_hf, save_gguf):
        with pytest.raises(MoecError, match=r"the numbers of model\.rotary_emb\.inv_freq were changed") as caught:
            save(program, tmp_path / "out", source)
        assert caught.value.code == "M206" and not (tmp_path / "out").exists()
    save_hf(of(Stretch(), Stretch(2.0), Halve()), tmp_path / "out", source)  # the same numbers again
