"""Mixtures in plain operators are said in the dialect where they compute the same, and left where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.execution.engine import EagerEngine
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.hand_written_mixtures import Mixture as Said
from moec.recognition.hand_written_mixtures import find_mixtures
from tests.mixtures import EXPERTS, VOCABULARY, WAYS, WIDTH, Grouped, Loop, Masked, Mixture, Switch, mixture, source_of
from tests.written import ALL_RUN, FOUND, WRONG, Corrected, ScoredBefore
from tests.written import Grouped as OfGroups

LEFT = {Masked: "tie", Grouped: "bfloat16"}


def found(way: type[Mixture]) -> tuple[Program, Context]:
    context = Context()
    program, _ = Pipeline.parse("find-moe, fuse-moe").all_optional().run(source_of(mixture(way)).capture(), context)
    return program, context


@pytest.mark.parametrize("way", [*(w for w in WAYS if w not in (*LEFT, Switch)), *FOUND])
def test_found_and_equal_at_other_sizes(way: type[Mixture]) -> None:
    program, context = found(way)
    assert len(moe_nodes(program)) == 1 and not context.misses
    for seed, size in enumerate(((1, 1), (2, 5), (4, 97))):
        ids = torch.randint(0, VOCABULARY, size, generator=torch.Generator().manual_seed(seed))
        want = source_of(mixture(way)).reference()(input_ids=ids)["output"]
        assert torch.allclose(EagerEngine(program)(input_ids=ids)["output"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [*LEFT, *WRONG])
def test_left_as_it_is_with_the_reason(way: type[Mixture]) -> None:
    program, context = found(way)
    assert not moe_nodes(program)
    (miss,) = {m.reason for m in context.misses}
    assert "stays as it is" in miss and LEFT.get(way, "") in miss
    assert ("all experts run for every token" in miss) == (way in ALL_RUN)


class ByNumber(Mixture):
    """A token's own number chooses its expert: all run, and a mask is over them."""

    def forward(self, input_ids: Tensor) -> Tensor:
        h, owner = self.embedding(input_ids), input_ids.reshape(-1) % EXPERTS
        return self.head((h.reshape(-1, WIDTH) + self.sent(h.reshape(-1, WIDTH), owner)).view(h.shape))  # type: ignore[no-any-return]

    def sent(self, x: Tensor, owner: Tensor) -> Tensor:
        return sum((expert(x) * (owner == e)[:, None] for e, expert in enumerate(self.experts)), torch.zeros_like(x))


class RowsByNumber(ByNumber):
    """The same, where an expert gets its rows alone."""

    def sent(self, x: Tensor, owner: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows = torch.where(owner == e)[0]
            out = out.index_add(0, rows, expert(x[rows]))
        return out


@pytest.mark.parametrize("way", [ByNumber, RowsByNumber])
def test_experts_that_whole_numbers_choose_are_left_with_that_reason(way: type[Mixture]) -> None:
    program, context = found(way)
    (miss,) = {m.reason for m in context.misses}
    assert not moe_nodes(program) and "chosen by the numbers of remainder, which is no ranking of logits" in miss


def test_rules_are_told_apart() -> None:
    (_, corrected), (_, before), (_, groups) = (
        next(find_mixtures(source_of(mixture(way)).capture())) for way in (Corrected, ScoredBefore, OfGroups)
    )
    assert isinstance(corrected, Said) and isinstance(before, Said) and isinstance(groups, Said)
    rule = corrected.routing
    assert (rule.score, rule.combine, rule.scale) == ("sigmoid", "renormalize", 2.5)
    assert corrected.region.bias is not None and corrected.experts.activation.gated
    assert before.score_before and not corrected.score_before
    assert (groups.routing.groups, groups.routing.top_groups) == (4, 2)


def test_copies_of_one_expert_hide_nothing() -> None:
    """With equal experts every choice gives the same; the rule is found all the same, because weights are drawn."""
    model = mixture(Loop)
    for expert in model.experts[1:]:
        expert.load_state_dict(model.experts[0].state_dict())
    ((_, said),) = find_mixtures(source_of(model).capture())
    assert isinstance(said, Said) and said.routing.combine == "scores"


class Scaled(Loop):
    """What comes out is multiplied by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return super().mix(x * self.scale)


class Two(torch.nn.Module):
    """Layers that are alike but for the value of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(mixture(Scaled, seed) for seed in range(2))
        self.layers[1].scale.fill_(0.5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        h = self.layers[0].embedding(input_ids).reshape(-1, 16)
        for layer in self.layers:
            weights, ids = layer.choice(h)
            gates = torch.zeros(h.shape[0], 4).scatter(1, ids, weights * layer.scale)
            h = h + sum(gates[:, e : e + 1] * expert(h) for e, expert in enumerate(layer.experts))
        return h


def test_a_layer_is_not_taken_for_one_with_another_constant() -> None:
    source = source_of(Two())
    first, second = (said for _, said in find_mixtures(source.capture()))
    assert isinstance(first, Said) and not isinstance(second, Said)
