"""Comparisons of constants that need no engine."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.program.program import Program
from moec.proof.values import compare_file, compare_lowering, compare_passes, compare_source, same_names
from moec.targets.backend import Constant
from moec.weights.lazy import Weight, from_tensor, rowwise, select, transpose
from tests.moe_module import MoeModel, source_of


def constant(name: str, weight: Weight | Tensor, lazy: bool = True) -> Constant:
    weight = from_tensor(weight, name) if isinstance(weight, Tensor) else weight
    return Constant(name, str(weight.dtype), weight.shape, weight, lazy=lazy)


def by_name(*constants: Constant) -> dict[str, Constant]:
    return {c.name: c for c in constants}


def names(found: object) -> list[str]:
    return [f.name for f in found]  # type: ignore[attr-defined]


def program() -> Program:
    return source_of(MoeModel()).capture()


def test_operators_and_forms_are_compared() -> None:
    due = by_name(Constant("y", text="y = ::Add(a, b)"), constant("w", torch.ones(3)))
    assert names(compare_file(due, due)) == []
    other = by_name(Constant("y", text="y = ::Sub(a, b)"), constant("w", torch.ones(4)))
    assert names(compare_file(other, due)) == ["y", "w"]


def test_what_has_no_counterpart_by_name_has_one_by_content_or_none() -> None:
    due = by_name(constant("w", torch.ones(3)), constant("small", torch.tensor(7.0), lazy=False))
    renamed = by_name(constant("v", torch.ones(3)), constant("small", torch.tensor(7.0), lazy=False))
    assert names(compare_file(renamed, due)) == []
    wrong = by_name(constant("v", torch.ones(3) * 2), constant("small", torch.tensor(6.9), lazy=False))
    assert sorted(names(compare_file(wrong, due))) == ["small", "v", "w"]


def test_moved_weights_have_their_elements() -> None:
    made = program()
    stack, head = (made.weights[n] for n in ("blocks.0.w_in", "head.weight"))
    experts = [constant(f"e{n}", transpose(select(stack, n), 0, 1)) for n in range(stack.shape[0])]
    right = by_name(*experts, constant("head.T", transpose(head, 0, 1)))
    assert names(compare_lowering(right, made)) == []
    off = constant("e2", rowwise("off", lambda t: t * 1.001, transpose(select(stack, 2), 0, 1)))
    assert names(compare_lowering({**right, "e2": off}, made)) == ["e0"]
    own = constant("head.weight", rowwise("off", lambda t: t * 1.001, head))
    assert names(compare_lowering(by_name(own), made)) == ["head.weight"]


def test_a_large_table_of_nothing_known_cannot_be_traced() -> None:
    made = program()
    assert names(compare_lowering(by_name(constant("sizes", torch.ones(64))), made)) == []
    assert names(compare_lowering(by_name(constant("table", torch.ones(5000))), made)) == ["table"]


def test_a_program_beside_the_model_s_own_tensors() -> None:
    source = source_of(MoeModel())
    made, tensors = source.capture(), source.reference().tensors()
    assert names(compare_source(made, tensors)) == [] and len(same_names(made, tensors)) == len(made.weights)
    half = source.capture(torch.float16)
    assert names(compare_source(half, tensors)) == []
    tensors["blocks.1.b_out"] = tensors["blocks.1.b_out"] * 1.01
    assert names(compare_source(made, tensors)) == names(compare_source(half, tensors)) == ["blocks.1.b_out"]


def test_a_pass_that_touches_a_weight_is_seen() -> None:
    before = program()
    after = before.clone()
    assert names(compare_passes(before, after)) == []
    after.weights["head.bias"] = from_tensor(before.weights["head.bias"].load() + 1e-7, "touched")
    assert names(compare_passes(before, after)) == ["head.bias"]
