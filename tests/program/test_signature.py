"""Named inputs with sums of dimensions."""

from __future__ import annotations

import torch

from moec.program.signature import Input, converted, dynamic_dimensions, identifier, sizes_of


def test_a_dimension_may_be_a_sum() -> None:
    mask = Input("attention_mask", torch.int64, ("batch", "past + new", 3))
    assert mask.resolve({"batch": 2, "past": 4, "new": 5}) == (2, 9, 3)


def test_a_dimension_may_be_one_for_every_few() -> None:
    rows, both = Input("rows", torch.int64, ("batch", "past // 4")), Input("rows", torch.int64, ("past + new // 4",))
    assert rows.resolve({"batch": 2, "past": 11}) == (2, 2) and both.resolve({"past": 3, "new": 1}) == (1,)
    assert identifier("past // 4") == "past_per_4" and dynamic_dimensions([rows]) == ["batch", "past"]
    assert sizes_of([rows], {"rows": torch.zeros(2, 3)}) == {"batch": 2}, "it says nothing of what it follows from"


def test_dimensions_in_order_a_sum_by_its_parts() -> None:
    inputs = [
        Input("a", torch.int64, ("batch", "new")),
        Input("b", torch.int64, ("batch", "past + new")),
        Input("c", torch.int64, (1,)),
    ]
    assert dynamic_dimensions(inputs) == ["batch", "new", "past"]


def test_a_dimension_that_stands_in_a_sum_alone_is_what_the_others_leave() -> None:
    inputs = [Input("ids", torch.int64, ("batch", "new")), Input("mask", torch.int64, ("batch", "past + new"))]
    sample = {"ids": torch.zeros(2, 3), "mask": torch.zeros(2, 8)}
    assert sizes_of(inputs, sample) == {"batch": 2, "new": 3, "past": 5}
    assert sizes_of(inputs[1:], sample) == {"batch": 2}, "of two unknown ones, it says neither"


def test_names_that_python_can_write() -> None:
    assert identifier("past_key_values.0.key").isidentifier() and identifier("past + new").isidentifier()
    assert Input("a.b", torch.int64, ()).identifier == "a_b"


def test_one_sample_serves_every_precision() -> None:
    spec = [Input("ids", torch.int64, ("batch",)), Input("cache", torch.float16, ("batch",))]
    found = converted(spec, {"ids": torch.ones(2, dtype=torch.int64), "cache": torch.ones(2), "other": torch.ones(2)})
    assert [t.dtype for t in found.values()] == [torch.int64, torch.float16, torch.float32]
