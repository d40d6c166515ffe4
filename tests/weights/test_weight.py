"""A weight's facts, what it is computed from, and the one form of packed integers."""

from __future__ import annotations

import torch

from moec.dialect import dequantize, pack
from moec.weights import lazy
from moec.weights.weight import BLOCK_BYTES, PackedWeight, Weight, block_bytes, blocks_of
from moec.weights.widths import taken


def packed(bits: int, groups: int, zero: bool) -> PackedWeight:
    """`[3, 5, 32]` of random integers."""
    generator = torch.Generator().manual_seed(bits)
    codes = pack(torch.randint(0, 2**bits, (3, 5, 32), generator=generator), bits)
    scale = torch.rand(3, 5, groups, generator=generator) + 0.5
    zeros = torch.randint(0, 2**bits, (3, 5, groups), generator=generator).to(torch.uint8)
    parts = [lazy.from_tensor(t, name) for t, name in ((codes, "codes"), (scale, "scale"), (zeros, "zeros"))]
    return PackedWeight(parts[0], parts[1], parts[2] if zero else None, bits)


def test_a_packed_weight_says_what_it_stands_for() -> None:
    for bits in (2, 4, 8):
        for groups in (1, 2):
            for zero in (False, True):
                weight = packed(bits, groups, zero)
                value = dequantize(*(p.load() for p in weight.parts()), bits=bits)
                assert weight.shape == tuple(value.shape) == (3, 5, 32) and weight.dtype == value.dtype
                assert weight.group == 32 // groups and len(weight.parts()) == 2 + zero
                assert weight.kind == (
                    f"{bits} bits in blocks of {32 // groups}, {'with zero points' if zero else 'symmetric'}"
                )


def test_its_size_counts_zero_points_packed_by_rows() -> None:
    plain, asymmetric = packed(4, 1, False), packed(4, 1, True)
    assert plain.size_bytes == 3 * 5 * 16 + 3 * 5 * 4
    assert asymmetric.size_bytes == plain.size_bytes + 3 * 5, "one zero point of 4 bits fills a byte of its row"
    assert packed(2, 2, True).size_bytes == packed(2, 2, False).size_bytes + 3 * 5
    assert packed(8, 2, True).size_bytes == packed(8, 2, False).size_bytes + 3 * 5 * 2


def test_the_same_rows_of_all_parts_are_the_rows_of_the_weight() -> None:
    weight = packed(4, 2, True)
    some = weight.each(lambda part: taken(part, [2, 0]))
    whole = dequantize(*(p.load() for p in weight.parts()), bits=4)
    assert torch.equal(dequantize(*(p.load() for p in some.parts()), bits=4), whole[[2, 0]])
    assert not torch.equal(dequantize(*(p.load() for p in some.parts()), bits=4), whole[[0, 2]])
    assert some.bits == 4 and packed(4, 2, False).each(lambda part: part).zero is None


def test_a_decoded_weight_knows_its_codes_until_they_are_mixed() -> None:
    weight = packed(4, 2, True)
    value = lazy.decoded(weight)
    assert value.coded is weight and lazy.select(value, 1).coded is not None
    mixed = lazy.rowwise("double", lambda t: t * 2, value)
    assert mixed.coded is None and [w.coded for w in mixed.expression() if w.coded is not None] == [weight]
    assert not any(w.coded for w in lazy.rowwise("double", lambda t: t * 2, weight.scale).expression())


def of(*shape: int) -> Weight:
    return lazy.from_tensor(torch.randn(shape), f"w{list(shape)}")


def test_every_expression_knows_its_inputs() -> None:
    a, b = of(4, 3, 2), of(4, 3, 2)
    made = {
        "rowwise": lazy.rowwise("f", torch.neg, a),
        "rearranged": lazy.rearranged("f", lambda t: t.flip(1), a),
        "whole": lazy.whole("f", torch.neg, a),
        "select": lazy.select(a, 1),
        "rows": lazy.rows(a, 1, 3),
        "take": lazy.take(a, [2, 0]),
        "taken": taken(a, [2, 0]),
        "merged": lazy.merged(a),
        "columns": lazy.columns(a, 0, 1),
        "transpose": lazy.transpose(a, 1, 2),
        "transpose of the leading dimension": lazy.transpose(a, 0, 1),
        "cast": lazy.cast(a, torch.float64),
        "scale": lazy.scale(a, 2.0),
    }
    assert {name: w.inputs for name, w in made.items()} == dict.fromkeys(made, (a,))
    for joined in (lazy.stack([a, b]), lazy.concat([a, b], 0), lazy.concat([a, b], 1)):
        assert joined.inputs == (a, b)
    assert a.inputs == () == lazy.zeros((2, 2), torch.float32).inputs


def test_an_expression_holds_each_weight_once() -> None:
    a, b = of(4, 3), of(4, 3)
    both = lazy.rowwise("sum", torch.add, a, b)
    again = lazy.rowwise("sum", torch.add, both, lazy.stack([a] * 5).inputs[0])
    found = list(again.expression())
    assert found[0] is again and {id(w) for w in found} == {id(w) for w in (again, both, a, b)} and len(found) == 4
    deep = a
    for _ in range(5000):
        deep = lazy.rows(deep, 0, 4)
    assert sum(1 for _ in deep.expression()) == 5001, "no recursion"


def test_blocks_become_smaller_within_and_never_larger() -> None:
    weight = lazy.from_tensor(torch.arange(40.0).reshape(10, 4), "w")
    assert len(list(weight.blocks())) == 1 and len(list(weight.blocks(32))) == 5
    with blocks_of(48), blocks_of(2**40):
        parts = list(weight.blocks())
        assert block_bytes() == 48 and [len(part) for part in parts] == [3, 3, 3, 1]
        assert torch.equal(torch.cat(parts), weight.load())
    assert block_bytes() == BLOCK_BYTES


def test_pieces_are_all_rows_once_and_few_at_a_time() -> None:
    parts = [torch.randn(6, 4) for _ in range(4)]
    asked: list[int] = []

    def noted(value: torch.Tensor) -> Weight:
        def read(start: int, stop: int) -> torch.Tensor:
            asked.append(stop - start)
            return value[start:stop]

        return Weight((6, 4), value.dtype, "noted", read, by_rows=True)

    gate, up = lazy.stack(list(map(noted, parts[:2]))), lazy.stack(list(map(noted, parts[2:])))
    both = torch.cat([torch.stack(parts[:2]), torch.stack(parts[2:])], 1)
    for weight, whole in (
        (lazy.concat([gate, up], 1), both.flatten(0, 1)),
        (lazy.concat(list(map(noted, parts)), 0), torch.cat(parts)),
        (lazy.select(gate, 1), parts[1]),
        (lazy.transpose(noted(parts[0]), 0, 1), parts[0].T),
        (lazy.whole("copy", lambda t: t, noted(parts[0])), parts[0]),
        (lazy.transpose(gate, 1, 2), torch.stack(parts[:2]).transpose(1, 2).flatten(0, 1)),
    ):
        asked.clear()
        pieces = list(weight.pieces(0, weight.shape[0], numbers=8))
        assert all(piece.rows <= 2 for piece in pieces)
        found = torch.cat([piece.read() for piece in pieces])
        assert torch.equal(found, whole) and not torch.equal(found.flip(0), whole)
        assert sum(asked) * 4 == whole.numel(), "nothing is read twice"
    assert max(asked) == 6, "a transposed expert is read as a whole"
    assert torch.equal(torch.cat([p.read() for p in gate.pieces(1, 2)]), parts[1])
    (scalar,) = lazy.from_tensor(torch.arange(5.0), "v").pieces(1, 4)
    assert scalar.read().flatten().tolist() == [1, 2, 3]
