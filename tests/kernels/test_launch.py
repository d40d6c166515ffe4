"""`moec.kernels.launch` in Triton's interpreter against float64: every rule, every shape, both ways through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor

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
        others = torch.arange(9) != lost
        rest = Problem(given.x[others], given.ids[others], given.weights[others], *given.tensors()[3:])
        assert ratio(got[others], rest, Activation()) < MARGIN


def test_strided_weights_and_tokens(interpret: Interpret) -> None:
    """transformers keeps some matrices as `[E, in, out]`: a view of them is taken as it is."""
    given = problem(tokens=20)
    assert isinstance(given.w_in, torch.Tensor) and isinstance(given.w_out, torch.Tensor)
    turned = [w.mT.contiguous().mT for w in (given.w_in, given.w_out)]
    x = torch.cat([given.x, given.x], -1)[:, :40]
    assert not (x.is_contiguous() or turned[0].is_contiguous())
    got = interpret(launch.experts, x, given.ids, given.weights, *turned, rule=Activation(), tile=SMALL)
    assert ratio(got, given, Activation()) < MARGIN


TILES = {
    "small": SMALL,
    "wide": Tile(32, 64, 32),
    "deep": Tile(16, 32, 64, band=2),
    "persistent": replace(SMALL, resident=1),
}


def whole_numbers(tokens: int = 16, top_k: int = 3, experts: int = 6, hidden: int = 40, inner: int = 24) -> Problem:
    """Integers and powers of two. No sum needs more than 24 bits, so in float32 every order of its terms gives the
    same bits, and no BLAS decides."""
    generator = torch.Generator().manual_seed(0)

    def draw(most: int, *shape: int) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=generator).float()

    ids = torch.rand(tokens, experts, generator=generator).topk(top_k).indices
    weights = 0.5 ** torch.randint(0, 3, (tokens, top_k), generator=generator)
    biases = draw(1, experts, 2 * inner), draw(1, experts, hidden)
    x, w_in, w_out = draw(2, tokens, hidden), draw(1, experts, 2 * inner, hidden), draw(1, experts, hidden, inner)
    return Problem(x, ids, weights, w_in, w_out, *biases)


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_a_row_has_its_own_terms_wherever_it_stands(interpret: Interpret, tile: Tile, sort: bool) -> None:
    """None is lost, none comes twice, and none is another row's."""
    given, rule = whole_numbers(), Activation("relu")
    got = interpret(launch.experts, *given.tensors(), rule=rule, tile=tile, sort=sort).double()
    assert torch.equal(got, given.reference(rule, torch.float64))
    one_less = replace(given, x=given.x * (torch.arange(40) != 39))
    assert not torch.equal(got, one_less.reference(rule, torch.float64))


ORDERS = list(permutations([2.0**24, 1.0, 1.0, -(2.0**24)]))  # the order of terms shows: 2**24 + 1 is 2**24 in float32


def in_order(terms: Sequence[float]) -> float:
    """Their sum in float32, term by term."""
    total = torch.zeros(())
    for term in terms:
        total = total + torch.tensor(term)
    return float(total)


def sums_of(where: str) -> Problem:
    """The terms of all `ORDERS` as one of the three sums that an expert makes; all else multiplies by one.

    Every step of 32 columns holds one term among zeros, which any BLAS adds exactly.
    """
    terms, eye, place = torch.tensor(ORDERS), torch.eye(128), torch.tensor([3, 32, 95, 96])
    spread, ones = torch.zeros(128, 128), torch.zeros(128, 128)
    spread[:24, place], ones[:, place] = terms, 1.0
    one = torch.zeros(24, 1, dtype=torch.int64), torch.ones(24, 1)
    if where == "first product":
        return Problem(spread[:24], *one, ones[None], eye[None], None, None)
    if where == "second product":
        return Problem(ones[:24], *one, eye[None], spread[None], None, None)
    assert where == "experts"
    many = torch.eye(16).expand(4, 16, 16)
    return Problem(torch.ones(24, 16), torch.arange(4).expand(24, 4), terms, many, many, None, None)


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("where", ["first product", "second product", "experts"])
def test_sums_are_made_in_the_order_of_k(interpret: Interpret, where: str, sort: bool) -> None:
    given, rule = sums_of(where), Activation("identity", gated=False)
    got = interpret(launch.experts, *given.tensors(), rule=rule, tile=Tile(32, 32, 32), sort=sort)
    seen = got[0, :24] if where == "second product" else got[:, 0]
    assert seen.tolist() == [in_order(terms) for terms in ORDERS]


def test_every_other_order_would_be_seen() -> None:
    """But for the first two terms, which may change places."""
    meant = [in_order(terms) for terms in ORDERS]
    for order in permutations(range(4)):
        other = [in_order([terms[n] for n in order]) for terms in ORDERS]
        assert (other == meant) == (order[2:] == (2, 3))
    by_pairs = [in_order([in_order(terms[:2]), in_order(terms[2:])]) for terms in ORDERS]
    assert by_pairs != meant
