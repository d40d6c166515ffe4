"""A pass: its name, what it holds, and the near misses that it reports."""

from __future__ import annotations

import numpy as np
from torch import fx

from moec.passes.quantize import Quantize
from moec.passes.upcycle import Upcycle
from moec.pipeline.notation import make_pass
from moec.pipeline.passes import Context, kebab


def test_names() -> None:
    assert [kebab(n) for n in ("FuseMoe", "Upcycle")] == ["fuse-moe", "upcycle"]
    assert make_pass("fuse-moe", {}).name == "fuse-moe"


def test_what_a_pass_holds_does_not_change() -> None:
    layers = [0, 1]
    upcycle = Upcycle(layers=layers)
    layers.append(7)
    assert upcycle.layers == (0, 1) and upcycle == Upcycle(layers=(0, 1))
    assert Quantize(rules={"x": {"bits": 4, "y": [1, [2]]}}).rules == {"x": {"bits": 4, "y": (1, (2,))}}


def test_only_options_that_differ_from_the_defaults_are_given() -> None:
    assert Upcycle(8, 3).given == {"top_k": 3} and str(Upcycle(8, 3)) == "upcycle(top_k=3)"
    assert Upcycle(reinit=0).given == {"reinit": 0}  # equal to 0.0, and not the same


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    assert str(Upcycle(np.int64(4), reinit=np.float64(0.5))) == "upcycle(experts=4, reinit=0.5)"


def test_a_miss_names_the_models_own_line() -> None:
    context, node = Context(current="fuse-moe"), fx.Graph().placeholder("x")
    node.meta["stack_trace"] = 'File "model.py", line 7, in forward\n    return x + 1\n'
    context.miss(node, "no")
    assert (context.misses[0].pass_name, context.misses[0].node, context.misses[0].source_line) == (
        "fuse-moe",
        "x",
        'File "model.py", line 7, in forward',
    )
