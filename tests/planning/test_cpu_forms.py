"""In which form an engine here computes with a tensor."""

from __future__ import annotations

from dataclasses import replace

from moec.planning.cpu_forms import FULL, Forms, HeldPacked, forms_of, head_form
from moec.planning.formats import find_format, recipe_format
from moec.planning.shape import Tensor
from tests.planning.shapes import dense, mixture

MATRIX = Tensor("layers.0.mlp.up_proj.weight", (64, 128), "dense FFN")
NAMES = ("fp32", "int4", "int4 rounded", "int8 rounded")


def packed(tensor: Tensor, bits: int, group: int = 64) -> Tensor:
    return replace(tensor, codes=tensor.count * bits // 8, scales=tensor.count // group)


def test_a_format_says_the_forms_of_matrices_experts_and_head() -> None:
    assert forms_of(find_format("int2"), rounded=False) == (FULL, "int4")  # experts of 2 bits are read as 4
    assert forms_of(find_format("int2"), rounded=True) is forms_of(find_format("fp8"), rounded=False) is None
    assert [head_form(form) for form in NAMES] == [FULL, FULL, "int8 rounded", "int8 rounded"]
    head, expert = replace(MATRIX, part="output head"), replace(MATRIX, part="routed experts")
    forms = Forms(find_format("int2"), rounded=False, packed=False)
    assert [forms.of(t) for t in (MATRIX, head, expert)] == [FULL, FULL, "int4"]


def test_what_is_packed_says_it_itself() -> None:
    exact, rounded = (Forms(recipe_format("packed form"), r, packed=True) for r in (False, True))
    assert [exact.of(packed(MATRIX, bits)) for bits in (2, 4, 8)] == [FULL, "int4", FULL]
    expert = replace(MATRIX, part="routed experts")
    assert [exact.of(packed(expert, bits)) for bits in (2, 3, 4, 8)] == ["int4", None, "int4", FULL]
    assert [rounded.of(packed(MATRIX, bits)) for bits in (2, 4, 8)] == [None, "int4 rounded", "int8 rounded"]
    assert exact.of(MATRIX) == rounded.of(MATRIX) == FULL
    zeros = replace(packed(MATRIX, 4), codes=MATRIX.count // 2 + MATRIX.count // 128)  # zero points of 4 bits
    assert zeros.bits == 4 and rounded.of(zeros) == "int4 rounded"
    tiles = replace(packed(MATRIX, 8), scales=1)  # floats of 8 bits have a scale for a tile, those of 4 none
    assert tiles.bits == 0 and rounded.of(tiles) is None


def test_what_is_packed_is_as_wide_as_its_form() -> None:
    exact, rounded = HeldPacked(rounded=False), HeldPacked(rounded=True)
    expert = replace(MATRIX, part="routed experts")
    assert [exact.width(packed(MATRIX, bits)) for bits in (2, 4, 8)] == [32, 4, 32]
    # 3: of 2 and 4 bits in one block; 6: some of 8 bits are among them
    assert [exact.width(packed(expert, bits)) for bits in (2, 3, 4, 6, 8)] == [4, 4, 4, 32, 32]
    assert [rounded.width(packed(expert, bits)) for bits in (2, 3, 4, 6, 8)] == [2, 3, 4, 6, 8]
    floats = replace(packed(MATRIX, 8), scales=1)
    assert exact.width(floats) == rounded.width(floats) == 0


def test_all_forms_have_to_be_measured_and_experts_have_one() -> None:
    plain, shape = Forms(find_format("int4"), rounded=True, packed=False), mixture(layers=1)
    assert plain.known(shape, NAMES) and plain.of_experts(shape) == "int4 rounded"
    assert not plain.known(shape, NAMES[:3])  # the head has 8 bits
    own = Forms(recipe_format("packed form"), rounded=True, packed=True)
    widths = {"gate_up_proj": 4, "down_proj": 8}
    mixed = replace(
        shape,
        tensors=tuple(packed(t, widths.get(t.name.rpartition(".")[2], 4)) for t in shape.tensors if t.part != "norm"),
    )
    assert not own.known(mixed, NAMES)
    assert own.known(replace(mixed, tensors=tuple(t for t in mixed.tensors if "down" not in t.name)), NAMES)
    assert own.of_experts(dense(layers=1)) == FULL
