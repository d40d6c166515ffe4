"""Mixtures in plain operators are found in every form, and nothing else is taken for one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.recognition.hand_written import find_hand_written
from tests import zoo
from tests.mixtures import EXPERTS, WAYS, Expert, Grouped, Heads, Loop, Mixture, Switch, mixture, source_of
from tests.moe_module import MoeModel
from tests.moe_module import source_of as dialect_source
from tests.written_with_names import ByAll, GatedTwice, InADict, NamedHeads


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_found(way: type[Mixture]) -> None:
    (found,) = find_hand_written(source_of(mixture(way)).capture())
    assert len(found.experts) == EXPERTS and all(len(places) == 2 for places in found.experts)
    assert found.top_k == (1 if way in (Switch, Grouped) else 2)
    up, down = found.experts[1]
    of = {"expert_1.up.weight": "expert", "experts.1.up.weight": "experts", "up.1": ""}
    assert found.module == of[up.name] and down.name == up.name.replace("up", "down")


def test_gated_experts_are_one_each() -> None:
    torch.manual_seed(0)
    (found,) = find_hand_written(source_of(Loop(gated=True)).capture())
    assert [len(places) for places in found.experts] == [3] * EXPERTS


class Deep(nn.Module):
    """Two mixtures, each after heads in a list, and two tops in a list at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mixture(Loop, seed) for seed in range(2))
        self.heads = nn.ModuleList(nn.ModuleList(nn.Linear(16, 8) for _ in range(2)) for _ in range(2))
        self.outs, self.tops = nn.ModuleList(nn.Linear(16, 16) for _ in range(2)), nn.ModuleList([Expert(), Expert()])

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.layers[0].embedding(input_ids).reshape(-1, 16)
        for layer, heads, out in zip(self.layers, self.heads, self.outs, strict=True):
            h = h + out(torch.cat([torch.relu(head(h)) for head in heads], -1))
            h = h + layer.mix(h)
        return torch.cat([top(h) for top in self.tops], -1)


def test_lists_of_other_modules_are_no_experts() -> None:
    found = find_hand_written(source_of(Deep()).capture())
    assert [block.module for block in found] == ["layers.0.experts", "layers.1.experts"]
    assert all(len(block.experts) == EXPERTS for block in found)


def test_experts_with_names_stand_in_the_order_in_which_they_run() -> None:
    (found,) = find_hand_written(source_of(mixture(InADict)).capture())
    assert (found.module, found.top_k) == ("experts", 2)
    assert [places[0].name.split(".")[1] for places in found.experts] == list(InADict.names)


def test_matrices_of_one_expert_are_no_experts() -> None:
    (found,) = find_hand_written(source_of(mixture(GatedTwice)).capture())
    names = [{place.name.split(".")[1] for place in places} for places in found.experts]
    assert names == [{name} for name in GatedTwice.names]


class Streams(Mixture):
    """A product of each group of a token's channels, put together by a softmax over the groups (DeepSeek-V4's
    attention beside its hyper-connections)."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.Parameter(torch.randn(2, 16, 8))

    def mix(self, x: Tensor) -> Tensor:
        shares = self.router(x).split(2, -1)[0].softmax(-1)
        return (torch.einsum("tgi,goi->tgo", x.view(-1, 2, 8), self.groups) * shares[..., None]).sum(1)


class PartOfTheRouter(ByAll):
    """The weights are a part of what the router says."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 2 * EXPERTS)

    def mix(self, x: Tensor) -> Tensor:
        gates = self.router(x).split(EXPERTS, -1)[0].softmax(-1)
        return sum(gates[:, e, None] * self.experts[name](x) for e, name in enumerate(self.names))  # type: ignore[return-value]


def test_logits_that_are_a_part_of_a_product_are_a_miss() -> None:
    with pytest.raises(MoecError, match="which is no linear layer"):
        Pipeline.parse("find-moe").run(source_of(mixture(PartOfTheRouter)).capture())


@pytest.mark.parametrize("way", [Heads, NamedHeads, Streams])
def test_what_every_token_uses_is_no_mixture(way: type[Mixture]) -> None:
    assert find_hand_written(source_of(mixture(way)).capture()) == []


def test_nothing_in_a_model_of_the_dialect() -> None:
    assert find_hand_written(dialect_source(MoeModel()).capture()) == []


def test_nothing_in_a_model_of_the_library() -> None:
    assert find_hand_written(zoo.captured("mixtral")) == []
