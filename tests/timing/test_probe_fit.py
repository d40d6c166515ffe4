"""Costs are found again in times that were made from them."""

from __future__ import annotations

import pytest

from moec.timing.probe_engines import Small
from moec.timing.probe_fit import LEFT_OUT, LENGTHS, CallTime, ExpertTime, NumberTime, ProductTime, fit, quiet

ROWS = (1, 4, 16)


def product(rows: int, width: int) -> float:
    weight = {1: 1e-10, 4: 1e-10, 16: 4e-10}[rows]
    return 2e-6 + (5e-6 if rows > 1 else 0.0) + 2 * rows * width * 1e-9 + width**2 * weight


def mixtures(key: ExpertTime) -> float:
    weight = {1: 1e-10, 2: 2e-10, 4: 2e-10, 8: 5e-10, 32: 2e-9, 128: 8e-9, 256: 16e-9}
    used = [n for n in key.loads if n]
    fixed = 7e-4 + 3e-5 * key.blocks + 2e-6 * len(used) + 1e-6 * len(key.loads) + sum(used) * key.inner * 4e-9
    return fixed + sum(key.weights * weight[n] for n in used)


def call(key: CallTime) -> float:
    s, scores = key.small, key.texts * (key.length if key.kind == "token" else key.length**2 / 2)
    tokens = key.texts * (1 if key.kind == "token" else key.length)
    return 1e-4 + s.layers * (
        2e-5 + 1e-6 * tokens * (s.heads + s.key_value_heads) + scores * s.heads * s.head_size * 1e-10
    )


def made() -> dict[object, list[float]]:
    times: dict[object, list[float]] = {1: [1e-10]}
    times |= {ProductTime("fp32", r, w): [product(r, w)] * 3 for r in ROWS for w in (256, 512, 1024)}
    loads = [(n, *[1] * k, *[0] * z) for n in (1, 2, 4, 8, 32, 128, 256) for k in (0, 3) for z in (4, 12)]
    cases = [(w, inner, blocks) for w, inner in ((10_000, 300), (50_000, 100)) for blocks in (1, 3)]
    for key in [ExpertTime("fp32", w, 64, inner, n, n * load) for load in loads for w, inner, n in cases]:
        times[key] = [mixtures(key)] * 3
    times |= {NumberTime(rows, 100): [1e-5 + rows * 100 * 2e-9] * 3 for rows in (1, 100, 1000)}
    for kind, lengths in LENGTHS.items():
        for small in (Small(2, 8), Small(8, 2), Small(4, 4, normed=True)):
            for key in [CallTime(kind, small, texts, n) for n in lengths for texts in (1, 2, 9)]:
                times[key] = [call(key)] * 3
    return times


def test_costs_are_found_again() -> None:
    found = fit(made())
    costs = found["products"]["fp32"]
    assert costs.an_operator == pytest.approx(2e-6, rel=0.01) and costs.several == pytest.approx(5e-6, rel=0.01)
    assert costs.a_weight == pytest.approx((1e-10, 1e-10, 4e-10), rel=0.01)
    experts = found["experts"]["fp32"]
    assert experts.a_block == pytest.approx(3e-5, rel=0.02) and experts.idle == pytest.approx(1e-6, rel=0.02)
    assert experts.an_inner == pytest.approx(4e-9, rel=0.02)  # and what the call takes is in none of them
    assert experts.a_weight == pytest.approx((1e-10, 2e-10, 2e-10, 5e-10, 2e-9, 8e-9), rel=0.02)
    assert found["elementwise"] == pytest.approx(2e-9, rel=0.01)
    assert found["low"] == pytest.approx(1 / (1 + LEFT_OUT), rel=0.01)
    assert found["high"] == pytest.approx(1 + LEFT_OUT, rel=0.01)


def test_more_rows_are_never_cheaper_and_a_disturbed_time_counts_little() -> None:
    times = made()
    for width in (256, 512, 1024):
        times[ProductTime("fp32", 4, width)] = [0.5 * product(4, width)] * 3
    weights = fit(times)["products"]["fp32"].a_weight
    assert list(weights) == sorted(weights)
    assert quiet([1.0, 1.0, 1.0, 90.0]) == 1.0
    disturbed = made() | {ProductTime("fp32", 1, 512): [product(1, 512)] * 9 + [1.0]}
    assert fit(disturbed)["products"]["fp32"].a_weight[0] == pytest.approx(1e-10, rel=0.01)
