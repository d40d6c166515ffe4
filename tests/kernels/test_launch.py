"""`moec.kernels.launch` in Triton's interpreter against float64: every rule, every shape, both ways through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moec.dialect import Activation
from moec.kernels import launch
from moec.kernels.tiles import Tile
from tests.dialect.experts_case import ACTIVATIONS
from tests.kernels.accuracy import MARGIN, Problem, problem, ratio
from tests.kernels.conftest import Interpret

SMALL = Tile(16, 32, 32)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(interpret: Interpret, name: str) -> None:
    rule = ACTIVATIONS[name]
    given = problem(rule, biases=True)
    got = interpret(launch.experts, *given.tensors(), rule=rule, tile=SMALL)
    other = replace(rule, name="tanh" if rule.name != "tanh" else "silu")
    assert ratio(got, given, rule) < MARGIN < ratio(got, given, other)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt-oss", {"alpha": 1.0}),
        ("gpt-oss", {"beta": 0.0}),
        ("gpt-oss", {"limit": 0.0}),
        ("gpt-oss", {"clamp_after": True}),
        ("gelu", {"name": "gelu_tanh"}),
    ],
)
def test_every_option_counts(interpret: Interpret, name: str, change: dict[str, object]) -> None:
    rule = ACTIVATIONS[name]
    given = problem(rule)
    got = interpret(launch.experts, *given.tensors(), rule=replace(rule, **change), tile=SMALL)
    assert ratio(got, given, rule) > MARGIN


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(interpret: Interpret, dtype: torch.dtype, sort: bool) -> None:
    given = problem(dtype=dtype, biases=True, hidden=72, inner=40)
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), sort=sort)
    assert got.dtype == dtype and got.shape == given.x.shape
    assert ratio(got, given, Activation()) < MARGIN < ratio(got, given, Activation("gelu"))


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "hidden", "inner"),
    [(1, 1, 1, 16, 16), (1, 4, 4, 33, 7), (16, 1, 5, 40, 24), (7, 3, 12, 17, 31), (13, 5, 5, 64, 1)],
)
def test_every_shape(
    interpret: Interpret, tokens: int, top_k: int, experts: int, hidden: int, inner: int, sort: bool
) -> None:
    given = problem(tokens=tokens, top_k=top_k, experts=experts, hidden=hidden, inner=inner)
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), tile=SMALL, sort=sort)
    wrong = replace(given, weights=given.weights * 1.001)
    assert ratio(got, given, Activation()) < MARGIN < ratio(got, wrong, Activation())


def test_no_tokens(interpret: Interpret) -> None:
    given = problem(tokens=0)
    assert interpret(launch.experts, *given.tensors(), rule=Activation()).shape == (0, 40)


@pytest.mark.parametrize("tokens", [40, 65])
def test_one_expert_takes_all(interpret: Interpret, tokens: int) -> None:
    """More tokens than a tile has rows, one expert with all of them, all others empty."""
    given = replace(problem(tokens=tokens, top_k=1), ids=torch.full((tokens, 1), 4))
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), tile=SMALL)
    other = replace(given, ids=given.ids - 1)
    assert ratio(got, given, Activation()) < MARGIN < ratio(got, other, Activation())


def test_too_many_tokens_are_sorted_whatever_is_said(interpret: Interpret) -> None:
    given = problem(tokens=17)
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), tile=SMALL, sort=False)
    assert ratio(got, given, Activation()) < MARGIN


def test_the_table_s_tiles(interpret: Interpret) -> None:
    """Without a tile of the test's own, and more than a tile's rows."""
    given = problem(tokens=300, top_k=2, experts=3, dtype=torch.float16)
    got = interpret(launch.experts, *given.tensors(), rule=Activation())
    assert ratio(got, given, Activation()) < MARGIN < ratio(got, given, Activation("gelu"))


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
def test_scores_before(interpret: Interpret, sort: bool) -> None:
    given = problem(biases=True, dtype=torch.bfloat16)
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), score_before=True, tile=SMALL, sort=sort)
    assert ratio(got, given, Activation(), before=True) < MARGIN < ratio(got, given, Activation())


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
def test_the_same_expert_twice(interpret: Interpret, sort: bool) -> None:
    given = problem(top_k=3)
    given.ids[2] = given.ids[2, 1]
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), tile=SMALL, sort=sort)
    assert ratio(got, given, Activation()) < MARGIN


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
def test_ids_out_of_range_add_nothing(interpret: Interpret, sort: bool) -> None:
    given = problem(tokens=9, top_k=3)
    wild = given.ids.clone()
    wild[0, 0], wild[3, 1], wild[8] = -1, 6, 2**40
    got = interpret(launch.experts, given.x, wild, *given.tensors()[2:], rule=Activation(), tile=SMALL, sort=sort)
    known = (wild >= 0) & (wild < 6)
    meant = replace(given, weights=given.weights * known)
    assert ratio(got, meant, Activation()) < MARGIN < ratio(got, given, Activation())
    assert (got[8] == 0).all()


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
def test_nan_stays_in_its_token(interpret: Interpret, sort: bool) -> None:
    """Padding rows repeat other tokens' rows, and widths are no multiples of a block: a NaN must not come through
    either."""
    given = problem(tokens=9, hidden=33, inner=7)
    for lost in (0, 4, 8):
        x = given.x.clone()
        x[lost] = float("nan")
        got = interpret(launch.experts, x, *given.tensors()[1:], rule=Activation(), tile=SMALL, sort=sort)
        assert got.isnan().any(-1).tolist() == [t == lost for t in range(9)]
        kept = torch.arange(9) != lost
        rest = Problem(given.x[kept], given.ids[kept], given.weights[kept], *given.tensors()[3:])
        assert ratio(got[kept], rest, Activation()) < MARGIN


def test_strided_weights_and_tokens(interpret: Interpret) -> None:
    """transformers keeps some matrices as `[E, in, out]`: a view of them is taken as it is."""
    given = problem(tokens=20)
    assert isinstance(given.w_in, torch.Tensor) and isinstance(given.w_out, torch.Tensor)
    turned = [w.mT.contiguous().mT for w in (given.w_in, given.w_out)]
    x = torch.cat([given.x, given.x], -1)[:, :40]
    assert not (x.is_contiguous() or turned[0].is_contiguous())
    got = interpret(launch.experts, x, given.ids, given.weights, *turned, rule=Activation(), tile=SMALL)
    assert ratio(got, given, Activation()) < MARGIN


def test_the_same_bits_whatever_the_tile(interpret: Interpret) -> None:
    """Rows don't depend on where they stand, and sums are made in the order of k."""
    given = problem(tokens=16, top_k=3)
    first, *others = [
        interpret(launch.experts, *given.tensors(), rule=Activation(), tile=SMALL, sort=s) for s in (True, True, False)
    ]
    assert all(torch.equal(first, other) for other in others)
