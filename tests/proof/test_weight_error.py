"""Every right quantization is as near as its grid allows; wrong ones are found by value, in the matrix they are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moec.dialect import pack
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.weight_error import WeightError, weight_errors
from moec.weights.lazy import from_tensor
from tests.learned import captured

RIGHT = (
    "bits=8", "bits=4", "bits=4, symmetric=False", "bits=4, method=hqq", "bits=4, positive_scales=True", "bits=3",
    "bits=3, symmetric=False", "bits=2, method=hqq", "bits=4, group=16, embeddings=8",
    "format=fp8", "format=nvfp4, group=16",
)  # fmt: skip
EXPERTS = "upcycle(experts=4, top_k=2)"


def quantized(options: str) -> Program:
    return Pipeline.parse(f"{EXPERTS}, quantize({options})").run(captured())[0]


def errors(program: Program) -> list[WeightError]:
    found, unknown = weight_errors(program, captured().weights)
    assert found and not unknown
    return found


@pytest.mark.parametrize("options", RIGHT)
def test_right_ones_pass(options: str) -> None:
    found = errors(quantized(options))
    assert all(e.ok and e.times <= 1.01 for e in found)
    assert {e.bits for e in found} <= {8, int(options[5]) if options.startswith("bits") else 4}


def change(program: Program, weight: str, part: str, function: Callable[[Tensor], Tensor], keep: bool = True) -> str:
    """Change a tensor of the first weight called so, and say of which; its expression is kept or lost."""
    name = next(n for n in program.weights if weight in n and n.endswith(part))
    old = program.weights[name]
    new = from_tensor(function(old.load().clone()), "changed")
    program.weights[name] = replace(new, inputs=old.inputs) if keep else new
    return name.removesuffix(part)


def of_one_expert(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def only(value: Tensor) -> Tensor:
        value[2] = function(value[2])
        return value

    return only


def shuffled(value: Tensor) -> Tensor:
    order = torch.randperm(value.numel(), generator=torch.Generator().manual_seed(0))
    return value.flatten()[order].view_as(value)


WRONG: dict[str, tuple[str, str, str, Callable[[Tensor], Tensor]]] = {
    "scale 1.05": ("bits=4", "q_proj", "_scale", lambda s: s * 1.05),
    "scale 0.95 at 8 bits": ("bits=8", "q_proj", "_scale", lambda s: s * 0.95),
    "scale 1.05 refined": ("bits=4, method=hqq", "q_proj", "_scale", lambda s: s * 1.05),
    "inverse scale": ("bits=4", "q_proj", "_scale", lambda s: 1 / s),
    "scale of the next group": ("bits=4, group=16", "q_proj", "_scale", lambda s: s.roll(1, -1)),
    "zero point off by one": ("bits=4, symmetric=False", "q_proj", "_zero_point", lambda z: z + 1),
    "codes of one expert shuffled": ("bits=4", "w_in", "_packed", of_one_expert(shuffled)),
    "one expert scaled by 1.05": ("bits=4", "w_in", "_scale", of_one_expert(lambda s: s * 1.05)),
    "one expert negated": ("bits=4", "w_in", "_scale", of_one_expert(lambda s: -s)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones_are_found(name: str) -> None:
    options, *where, function = WRONG[name]
    program = quantized(options)
    place = change(program, *where, function)
    wrong = [e for e in errors(program) if not e.ok]
    assert [e.name for e in wrong] == [place] and wrong[0].expert == (2 if "expert" in name else None)


def test_two_bits_passed_as_four() -> None:
    program = quantized("bits=4, group=32")
    coarse = Pipeline.parse("quantize(bits=2, group=32)").run(captured())[0]
    name = next(n for n in coarse.weights if n.endswith("q_proj.weight_packed"))
    codes = torch.stack([(coarse.weights[name].load() >> s) & 3 for s in (0, 2, 4, 6)], -1).flatten(-2) + 6
    program.weights[name] = replace(from_tensor(pack(codes, 4), "coarse"), inputs=program.weights[name].inputs)
    scale = name.replace("_packed", "_scale")
    program.weights[scale] = coarse.weights[scale]
    assert [e.name for e in errors(program) if not e.ok] == [name.removesuffix("_packed")]


def test_a_weight_that_hides_what_it_is_of_is_found_by_its_name() -> None:
    program = quantized("bits=4")
    place = change(program, "q_proj", "_packed", shuffled, keep=False)
    assert [e.name for e in errors(program) if not e.ok] == [place]
    assert weight_errors(program, {})[1] == [place]  # nothing says what it is of


def test_what_data_moved_may_be_further_off_but_keeps_its_scale() -> None:
    fitted = WeightError("w", None, 4, 0.17, 0.1, 0.99)
    assert fitted.ok and not replace(fitted, scale=0.95).ok and not replace(fitted, relative=0.3).ok
    assert replace(fitted, bits=2, scale=0.8).ok and not replace(fitted, bits=8).ok
    assert not replace(fitted, scale=float("nan")).ok and not replace(fitted, relative=float("nan"), scale=1.0).ok
    assert WeightError("w", None, 4, 0.0, 0.0, float("inf")).ok  # zeros
