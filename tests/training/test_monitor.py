"""A monitor of routers gives the figures of `moec routers`, from a model's own calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from moec.errors import MoecError
from moec.experts.routed_text import RoutedText
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import text_inputs
from moec.program.trainable import TrainableProgram
from moec.routing.figures import RouterFigures, figures_of
from moec.routing.tally import RouterTally
from moec.training import RouterMonitor
from tests import zoo

IDS = torch.randint(3, zoo.VOCAB, (4, 64), generator=torch.Generator().manual_seed(3))
OTHERS = ("qwen2_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4", "granite_moe")


def figures(model: nn.Module, **called: Any) -> tuple[RouterFigures, ...]:
    with RouterMonitor(model) as monitor, torch.no_grad():
        model(**{"input_ids": IDS, **called})
    return monitor.figures(alike=True)


def trainable(kind: str) -> TrainableProgram:
    """The model as a module of moec's."""
    return Pipeline.parse("find-moe").all_optional().run(zoo.captured(kind))[0].module(trainable=True)


def verbs_figures(kind: str) -> list[RouterFigures]:
    """As `moec routers` finds them."""
    routed = RoutedText(zoo.captured(kind))
    seen, found = routed.run([text_inputs(routed.program.inputs, IDS)]), []
    for mixture in routed.mixtures:
        tally = RouterTally(mixture.experts, mixture.top_k)
        tally.add(seen[mixture.name][0])
        found.append(figures_of(mixture.name, tally))
    return found


def differing(a: RouterFigures, b: RouterFigures) -> list[str]:
    """Names of the figures of scores and loads that are not the same."""
    names = ("load", "gate_mass", "probability", "max_vio", "effective_experts", "entropy", "confidence", "margin")
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in names}
    return [n for n, (x, y) in pairs.items() if (x is None) != (y is None) or x != pytest.approx(y, abs=2e-3)]


@pytest.mark.parametrize("kind", ["mixtral", *(pytest.param(k, marks=pytest.mark.repeats) for k in OTHERS)])
def test_figures_are_those_of_the_verb(kind: str) -> None:
    want, model = verbs_figures(kind), zoo.build(kind)
    found = figures(model)
    assert [differing(a, b) for a, b in zip(want, found, strict=True)] == [[]] * len(want)
    program = trainable(kind)
    ours = figures(program)
    assert [f.layer for f in ours] == [f.layer for f in want]
    assert [differing(a, b) for a, b in zip(want, ours, strict=True)] == [[]] * len(want)
    for a, b in zip(found, ours, strict=True):
        assert a.similarity is not None and b.similarity is not None and a.similarity.of == "weights"
        assert a.similarity.mean == pytest.approx(b.similarity.mean, abs=1e-5)
    with torch.no_grad():  # the mutant
        next(p for n, p in model.named_parameters() if "layers.1" in n and p.dim() == 2 and len(p) in (4, 8)).neg_()
    assert any(differing(a, b) for a, b in zip(want, figures(model), strict=True))


@pytest.mark.parametrize("make", [zoo.build, trainable])
def test_padding_does_not_count(make: Callable[[str], Any]) -> None:
    model = make("mixtral")
    mask = torch.ones_like(IDS)
    mask[1:, 32:] = 0
    found = figures(model, attention_mask=mask)
    assert {f.tokens for f in found} == {64 + 3 * 32}
    junk = torch.where(mask.bool(), IDS, 5)
    with RouterMonitor(model) as monitor, torch.no_grad():
        model(input_ids=junk, attention_mask=mask)
    assert [f.load for f in monitor.figures()] == [f.load for f in found]
    assert [f.load for f in figures(model)] != [f.load for f in found]


def test_a_collapsed_router_alarms_and_an_even_one_does_not() -> None:
    model: Any = zoo.build("mixtral")
    assert RouterMonitor(model).tallies == {}
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight.zero_()  # the first router's logits are equal
    with RouterMonitor(model) as monitor, torch.no_grad():
        model(input_ids=IDS)
    kinds = {(a.layer, a.kind) for a in monitor.alarms()}
    first, second = (f"model.layers.{k}.mlp.experts" for k in (0, 1))
    assert {(first, "collapse"), (first, "dead")} <= kinds and (second, "collapse") not in kinds
    assert monitor.summary()["router/dead"] >= 6 and monitor.counts()[first].tolist().count(0) == 6


def test_it_counts_what_it_is_asked_to_and_ends() -> None:
    model: Any = zoo.build("mixtral")
    monitor = RouterMonitor(model, training_only=True, every=2)
    with pytest.raises(MoecError, match="no forward"):
        monitor.figures()
    for mode in (model.eval, model.train):
        mode()
        for _ in range(4):
            model(input_ids=IDS)
    assert {t.tokens for t in monitor.tallies.values()} == {2 * IDS.numel()}
    monitor.reset()
    assert not monitor.tallies
    monitor.close()
    model(input_ids=IDS)
    model(input_ids=IDS)
    assert not monitor.tallies and not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_gradients_are_those_without_a_monitor() -> None:
    module = trainable("mixtral")

    def gradients() -> list[torch.Tensor]:
        module.zero_grad()
        module(input_ids=IDS[:, :9], labels=IDS[:, :9]).loss.backward()
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    want = gradients()
    with RouterMonitor(module):
        found = gradients()
    assert len(want) == len(found) and all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


def test_a_forward_of_a_program_that_does_not_count_has_no_routers_outputs() -> None:
    both = nn.ModuleList([trainable("mixtral"), trainable("mixtral")])
    ids, first = IDS[:, :9], both[0]
    with RouterMonitor(both, every=2) as monitor, torch.no_grad():
        first(input_ids=ids)
        assert not monitor.tallies and first._routers is None
        for module in (first, both[1], both[1], both[1]):
            module(input_ids=ids)
    assert [f.layer[0] for f in monitor.figures()] == ["0", "0", "1", "1"], "each is counted for itself"
    assert {f.tokens for f in monitor.figures()} == {ids.numel()} and first._routers is not None


@pytest.mark.parametrize("make", [zoo.build, lambda kind: zoo.captured(kind).module(trainable=True)])
def test_a_dense_model_has_nothing_to_monitor(make: Callable[[str], nn.Module]) -> None:
    with pytest.raises(MoecError, match="no mixture") as caught:
        RouterMonitor(make("llama"))
    assert caught.value.code == "M201" and "upcycle" in caught.value.fix


@pytest.mark.parametrize("every", [0, -2])
def test_one_forward_in_none_is_refused(every: int) -> None:
    with pytest.raises(MoecError, match=f"every={every}") as caught:
        RouterMonitor(nn.Linear(2, 2), every=every)
    assert caught.value.code == "M201"
