"""From the times of `moec probe` to what a product, an expert and a call cost: least squares without negative costs, of
relative errors (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from moec.planning.probed import Calls, Experts, Products, grown
from moec.planning.probed import shares as shares_of
from moec.timing.probe_engines import Small

KNOTS = (1, 2, 4, 8, 32, 128)  # rows of an expert
LENGTHS = {"token": (32, 256, 1024), "prompt": (16, 64, 256, 1024), "prompts": (64, 256)}
NINE_IN_TEN = (0.05, 0.95)
LEFT_OUT = 0.1  # what a sum of parts leaves out: an interval is wider by that, see benchmarks/plan.py


@dataclass(frozen=True)
class ProductTime:
    """Where a product was timed: its form, rows and the width of its square matrix. Seconds are of one product."""

    form: str
    rows: int
    width: int


@dataclass(frozen=True)
class ExpertTime:
    """Where mixtures were timed: form, weights of an expert, widths of its rows and between its products, mixtures in a
    call, and how many rows each expert of all of them had. Seconds are of the call."""

    form: str
    weights: int
    hidden: int
    inner: int
    blocks: int
    loads: tuple[int, ...]


@dataclass(frozen=True)
class NumberTime:
    """Where operators that multiply no matrices were timed: rows, and numbers of a row that go into them. Seconds are
    of the call."""

    rows: int
    numbers: int


@dataclass(frozen=True)
class CallTime:
    """Where a small decoder was timed: `token`, `prompt` or `prompts`, texts, and tokens of a prompt or behind the
    token. Seconds are of the call."""

    kind: str
    small: Small
    texts: int
    length: int


Times: TypeAlias = dict[Any, list[float]]  # by one of the three, or bytes by the number of threads


def fit(times: Mapping[Any, Sequence[float]]) -> dict[str, Any]:
    """`products`, `experts`, `calls`, `elementwise`, `low` and `high` of a record."""
    ratios: list[float] = []
    products = _products({k: t for k, t in times.items() if isinstance(k, ProductTime)}, ratios)
    experts = _experts({k: t for k, t in times.items() if isinstance(k, ExpertTime)}, ratios)
    calls = _calls({k: t for k, t in times.items() if isinstance(k, CallTime)}, products["fp32"], ratios)
    numbers = {k: [1.0, float(k.rows * k.numbers)] for k in times if isinstance(k, NumberTime)}
    elementwise = _fitted(numbers, times, ratios)[1]
    low, high = np.quantile(ratios, NINE_IN_TEN)
    shares = {"low": min(float(low), 1.0) / (1 + LEFT_OUT), "high": max(float(high), 1.0) * (1 + LEFT_OUT)}
    return {"products": products, "experts": experts, "calls": calls, "elementwise": elementwise, **shares}


def _solve(rows: np.ndarray, seconds: Sequence[float]) -> np.ndarray:
    """Costs of which the rows make the seconds, none below 0; columns are scaled, for they differ by 1e12."""
    from scipy.optimize import nnls

    wanted = np.asarray(seconds, float)
    table = rows / wanted[:, None]
    scale = np.where((norm := np.linalg.norm(table, axis=0)) > 0, norm, 1.0)
    found: np.ndarray = nnls(table / scale, np.ones(len(wanted)))[0] / scale
    return found


def quiet(times: Sequence[float]) -> float:
    """The lower quartile: what it takes when hardly anything else runs."""
    return float(np.quantile(times, 0.25))


def _fitted(
    rows: Mapping[Any, Sequence[float]], times: Mapping[Any, Sequence[float]], ratios: list[float],
    rising: int = 0, beside: Mapping[Any, float] | None = None,
) -> list[float]:  # fmt: skip
    """Costs for what the times are made of, and how the times then are to what these costs say.

    Args:
        rising: so many of the first costs never fall from one to the next: more rows are never cheaper than fewer.
        beside: what is known of the times already.
    """
    known, table = [beside[key] if beside else 0.0 for key in rows], np.asarray(list(rows.values()), float)
    table[:, :rising] = np.cumsum(table[:, :rising][:, ::-1], axis=1)[:, ::-1]  # of steps from each cost to the next
    found = _solve(table, [max(quiet(times[k]) - b, 1e-7) for k, b in zip(rows, known, strict=True)])
    found[:rising] = np.cumsum(found[:rising])
    for (key, row), b in zip(rows.items(), known, strict=True):
        ratios += [t / (float(np.dot(row, found)) + b) for t in times[key]]
    return [float(cost) for cost in found]


def _products(times: Mapping[ProductTime, Sequence[float]], ratios: list[float]) -> dict[str, Products]:
    made = {}
    for form in dict.fromkeys(key.form for key in times):
        own = [key for key in times if key.form == form]
        places = tuple(sorted({key.rows for key in own}))
        costs = _fitted({key: _of_product(key, places) for key in own}, times, ratios, len(places))
        made[form] = Products(places, tuple(costs[: len(places)]), *costs[len(places) :])
    return made


def _of_product(key: ProductTime, places: tuple[int, ...]) -> list[float]:
    """What a product is made of, in the order of the fields of `Products`."""
    weights = [key.width**2 * share for share in shares_of(places, key.rows)]
    return [*weights, 1.0, float(key.rows > 1), 2.0 * key.rows * key.width]


def _experts(times: Mapping[ExpertTime, Sequence[float]], ratios: list[float]) -> dict[str, Experts]:
    made = {}
    for form in dict.fromkeys(key.form for key in times):
        costs = _fitted({key: _of_mixtures(key) for key in times if key.form == form}, times, ratios, len(KNOTS))
        made[form] = Experts(KNOTS, tuple(costs[: len(KNOTS)]), *costs[len(KNOTS) : -1])
    return made


def _of_mixtures(key: ExpertTime) -> list[float]:
    """What a call is made of, in the order of the fields of `Experts`; at last the call itself, which a decoder's calls
    have already."""
    used = [n for n in key.loads if n]
    each = [[share * max(n / KNOTS[-1], 1.0) for share in shares_of(KNOTS, n)] for n in used]
    weights = key.weights * np.sum(each, axis=0)
    rows = float(sum(key.loads))
    return [*weights, key.blocks, len(used), len(key.loads), rows * key.hidden, rows * key.inner, 1.0]


def _calls(times: Mapping[CallTime, Sequence[float]], products: Products, ratios: list[float]) -> dict[str, Calls]:
    made = {}
    for kind in dict.fromkeys(key.kind for key in times):
        rows = {key: _of_call(key) for key in times if key.kind == kind}
        costs = _fitted(rows, times, ratios, 0, {key: _beside(key, products) for key in rows})
        lengths = LENGTHS[kind]
        made[kind] = Calls(lengths, tuple(costs[: len(lengths)]), *costs[len(lengths) :])
    return made


def _of_call(key: CallTime) -> list[float]:
    """What a call is made of, in the order of the fields of `Calls`."""
    small, layers = key.small, key.small.layers
    new = key.texts * (1 if key.kind == "token" else key.length)
    pairs = key.texts * (key.length if key.kind == "token" else key.length**2 / 2)
    scores = [
        share * layers * pairs * small.heads * small.head_size for share in shares_of(LENGTHS[key.kind], key.length)
    ]
    numbers = key.texts * key.length * 2 * small.key_value_heads * small.head_size
    normed = layers * small.normed
    heads = small.heads + small.key_value_heads
    return [*scores, 1.0, layers, layers * new * heads, layers * numbers, normed, normed * new * heads]


def _beside(key: CallTime, products: Products) -> float:
    """What multiplying takes in a decoder whose weights are in the cache: what many rows take more than one."""
    rows = key.texts * (1 if key.kind == "token" else key.length)
    more = grown(products.rows, products.a_weight, rows) - products.a_weight[0]
    return max(more, 0.0) * key.small.layers * key.small.matrices
