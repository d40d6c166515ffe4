"""A network that is cut: nothing is lost with all experts, each expert more loses less, and errors are those that are
there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation
from moec.experts import carving
from moec.experts.carved_refit import Output, refitted
from moec.experts.carving import Carved, Carving, Cut, cut
from moec.experts.dense_network import Dense
from moec.experts.network_text import NetworkText
from moec.experts.neuron_groups import PARTITIONS

HOW = Carving(8, 1, 4, "rows", "ridge", True, False, 0)


def network(seed: int = 0, gated: bool = True) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    rows = 64 if gated else 32
    w_in = torch.randn(rows, 12, generator=generator) * torch.rand(rows, 1, generator=generator) * 1.5
    return Dense(w_in, None, torch.randn(12, 32, generator=generator), Activation("silu" if gated else "relu", gated))


def tokens(count: int = 1600, seed: int = 1) -> Tensor:
    """Of few kinds, so that a router has something to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(6, 12, generator=generator)
    picked = kinds[torch.randint(0, 6, (count,), generator=generator)]
    return picked + 0.3 * torch.randn(count, 12, generator=generator)


def outputs(dense: Dense, carved: Carved, x: Tensor, active: int) -> Tensor:
    """What the cut network says, expert by expert."""
    hidden, logits = dense.hidden(x), carved.router(x)
    total = carved.output.constant.expand(len(x), -1).clone()
    for token, chosen in enumerate(logits.topk(active, dim=1).indices):
        for e in chosen.tolist():
            group = carved.groups[e]
            total[token] += carved.output.w_out[:, group] @ hidden[token, group] + carved.output.b_out[e]
    return total


@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_neuron_is_in_one_expert_and_all_experts_are_the_network(partition: str) -> None:
    dense, x = network(), tokens()
    carved = Cut(NetworkText(dense, x), replace(HOW, partition=partition, refit=True)).at(8)
    assert sorted(torch.cat(carved.groups).tolist()) == list(range(32))
    assert [len(g) for g in carved.groups] == [4] * 8
    whole = dense.hidden(x[:20]) @ dense.w_out.T
    assert torch.allclose(outputs(dense, carved, x[:20], 8), whole, atol=1e-4)
    assert carved.errors.carved == pytest.approx(0, abs=1e-9) and not carved.output.b_out.any()


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_errors_are_those_of_text_that_nothing_was_fitted_to(gated: bool, refit: bool) -> None:
    dense, x = network(gated=gated), tokens()
    cut = Cut(NetworkText(dense, x), replace(HOW, refit=refit))
    carved = cut.at(4)
    fitted, judged = x[:1400], x[1400:]
    whole = dense.hidden(judged) @ dense.w_out.T
    lost = (outputs(dense, carved, judged, 4) - whole).square().sum() / whole.square().sum()
    assert carved.errors.carved == pytest.approx(float(lost), rel=1e-3)
    assert carved.errors.oracle < carved.errors.carved
    dropped = cut.worth.argsort()[:16]
    away = dense.hidden(judged)[:, dropped] - dense.hidden(fitted)[:, dropped].mean(0)
    static = (away @ dense.w_out[:, dropped].T).square().sum() / whole.square().sum()
    assert carved.errors.static == pytest.approx(float(static), rel=1e-3)
    least = [cut.at(n).errors.carved for n in (2, 4, 6)]
    assert least == sorted(least, reverse=True)


def test_a_fitted_router_beats_rows_and_those_beat_chance() -> None:
    dense, x = network(), tokens()
    ridge, rows, chance = (
        Cut(NetworkText(dense, x), replace(HOW, router=router)).at(4).errors.carved
        for router in ("ridge", "mean-row", "random")
    )
    assert ridge < rows and ridge < chance


def test_means_of_what_is_left_out_make_up_for_some_of_it() -> None:
    dense, x = network(), tokens() + 1.0
    with_means, without = (
        Cut(NetworkText(dense, x), replace(HOW, compensate=c)).at(3).errors.carved for c in (True, False)
    )
    assert with_means < without


def test_shared_experts_are_those_worth_most_and_always_chosen() -> None:
    dense, x = network(), tokens()
    cut = Cut(NetworkText(dense, x), replace(HOW, shared=2))
    first = set(torch.cat(cut.groups[:2]).tolist())
    assert first == set(cut.worth.topk(8).indices.tolist())
    chosen = cut.router(x).topk(3, dim=1).indices
    assert all({0, 1} < set(row) for row in chosen.tolist())
    same = Cut(NetworkText(dense, x), replace(HOW, shared=4)).at(4).errors  # nothing is routed: it is static pruning
    assert same.carved == pytest.approx(same.static, rel=1e-3)


def test_a_curve_is_the_error_by_the_number_of_experts() -> None:
    dense, x = network(), tokens()
    cut = Cut(NetworkText(dense, x), replace(HOW, compensate=False))
    whole = float((dense.hidden(x[1400:]) @ dense.w_out.T).square().sum())
    for active in (2, 5, 8):
        assert float(cut.curve()[active - 1]) / whole == pytest.approx(cut.at(active).errors.carved, abs=1e-5)


def test_a_last_matrix_fitted_anew_loses_less() -> None:
    dense, x = network(), tokens()
    plain, fitted = (Cut(NetworkText(dense, x), replace(HOW, refit=refit)).at(4) for refit in (False, True))
    assert fitted.errors.carved < 0.7 * plain.errors.carved
    assert fitted.fitted and not plain.fitted and torch.equal(plain.output.w_out, dense.w_out)


def test_the_number_of_shared_experts_is_the_one_that_loses_least() -> None:
    dense, x = network(), tokens()
    how = replace(HOW, shared=None, refit=True)
    assert how.candidates() == [2, 3] and replace(how, active=1).candidates() == [0]
    tried = [Cut(NetworkText(dense, x), replace(how, shared=n)).at(4).errors.carved for n in (2, 3)]
    found = cut(NetworkText(dense, x), how)
    assert found.errors.carved == min(tried) < max(tried) and found.shared == (2, 3)[tried.index(min(tried))]


def test_errors_are_those_of_what_is_written_on_the_stream_where_it_is_known() -> None:
    dense, x = network(), tokens()
    whole = dense(x[1400:])
    drift = 0.4 * x @ torch.randn(12, 12, generator=torch.Generator().manual_seed(3))
    made = Cut(NetworkText(dense, x, drift), replace(HOW, refit=True))
    carved = made.at(4)
    apart = whole + drift[1400:] - outputs(dense, carved, x[1400:], 4)
    lost = [float(d.square().sum() / whole.square().sum()) for d in (apart, apart - drift[1400:])]
    assert carved.step is not None and carved.step.taken == 1.0
    assert carved.errors.carved == pytest.approx(lost[0], rel=1e-3) == pytest.approx(carved.step.left, rel=1e-3)
    assert carved.errors.carved < 0.95 * carved.step.before and abs(lost[0] - lost[1]) > 0.05 * lost[0]
    dropped = made.worth.argsort()[:16]
    away = (dense.hidden(x[1400:])[:, dropped] - dense.hidden(x[:1400])[:, dropped].mean(0)) @ dense.w_out[:, dropped].T
    static = (away + drift[1400:]).square().sum() / whole.square().sum()
    assert carved.errors.static == pytest.approx(float(static), rel=1e-3)


def test_numbers_of_shared_experts_are_judged_by_one_measure_where_a_fit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x, how = network(), tokens(), replace(HOW, shared=None, refit=True)
    text = NetworkText(dense, x, 4 * x @ torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))
    calls = list[Output]()

    def every_second_fails(before: Output, *given: Any) -> tuple[Output, Output | None]:
        calls.append(before)
        return refitted(before, *given) if len(calls) % 2 else (before, None)

    monkeypatch.setattr(carving, "refitted", every_second_fails)
    found = cut(text, how)
    fits, fails = (Cut(text, replace(how, shared=n)).at(4) for n in (2, 3))
    assert fails.step is None and fits.errors.carved < fails.errors.carved and found.shared == 2
    apart = text.judged.says - outputs(dense, fails, text.judged.x, 4)
    own = float(apart.square().sum() / text.judged.says.square().sum())
    assert own < fits.errors.carved  # by its own output alone, the one that failed would have been taken


def test_an_analytical_router_is_the_network_of_the_neurons_that_stand_for_their_experts() -> None:
    dense, x = network(), tokens()
    found = Cut(NetworkText(dense, x), replace(HOW, shared=2, partition="indicator", router="analytical"))
    picked = []
    for row in found.router.weight[2:]:
        near = F.normalize(dense.w_in[:32], dim=1) @ row
        picked.append(int(near.argmax()))
        assert float(near.max()) == pytest.approx(1, abs=1e-5)
    assert all(n in group.tolist() for n, group in zip(picked, found.groups[2:], strict=True))
    rows = F.normalize(dense.w_in, dim=1)
    gate, up = x @ rows[picked].T, x @ rows[[32 + n for n in picked]].T
    assert torch.allclose(found.router(x)[:, 2:], (F.silu(gate) * up).abs(), atol=1e-4)
