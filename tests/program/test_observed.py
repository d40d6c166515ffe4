"""What routers do, as more outputs of a graph."""

from __future__ import annotations

import pytest
import torch

from moec.dialect import route_reference
from moec.pipeline.pipeline import Pipeline
from moec.program.observed import expert_weights, router_weights, with_routers
from moec.routing.tally import Choice
from tests import zoo
from tests.routers import UNKNOWN, Block, captured, scaled_per_expert

NAMES = ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]


@pytest.mark.parametrize("passes", ["find-moe", "find-moe, fuse-moe"])
def test_choices_follow_from_the_logits_by_the_rule(passes: str) -> None:
    program, _ = Pipeline.parse(passes).run(zoo.captured("mixtral"))
    module, seen = program.module(trainable=True), dict[str, Choice]()
    end = module.watch_routers(lambda name, choice, mask: seen.update({name: choice}))
    ids = torch.randint(3, zoo.VOCAB, (2, 9))
    output = module(input_ids=ids, output_router_logits=True)
    assert list(seen) == NAMES
    for choice, logits in zip(seen.values(), output.router_logits, strict=True):
        weights, chosen = route_reference(logits, None, module._found.rules[0])
        assert torch.equal(choice.ids, chosen) and torch.allclose(choice.weights, weights)
        assert choice.shares is not None and torch.allclose(choice.shares, logits.softmax(-1), atol=1e-6)
        assert not choice.weights.requires_grad and choice.experts == 8
    end()
    seen.clear()
    assert torch.allclose(module(input_ids=ids).logits, output.logits, atol=1e-6) and not seen


def test_a_router_that_no_rule_says_has_choices_and_no_scores() -> None:
    assert scaled_per_expert in UNKNOWN
    program, _ = Pipeline.parse("find-moe").all_optional().run(captured(Block(scaled_per_expert)))
    found = with_routers(program.graph, 1)
    values = [torch.zeros(1), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)]
    (name, choice), *others = found.choices(values)
    assert name and not others and found.rules == [] and choice.shares is None and choice.experts == 8


@pytest.mark.parametrize("passes", ["find-moe", "find-moe, fuse-moe"])
def test_the_weights_of_routers_and_of_experts_are_told_apart(passes: str) -> None:
    program, _ = Pipeline.parse(passes).run(zoo.captured("mixtral"))
    assert router_weights(program.graph) == [f"model.layers.{k}.mlp.gate.weight" for k in (0, 1)]
    own = expert_weights(program.graph)
    assert list(own) == NAMES and {len(names) for names in own.values()} == {2}
    assert not set(router_weights(program.graph)) & {n for names in own.values() for n in names}


def test_an_upcycled_model_has_routers_and_a_dense_one_none() -> None:
    dense = zoo.captured("llama")
    assert router_weights(dense.graph) == [] and expert_weights(dense.graph) == {}
    mixture, _ = Pipeline.parse("upcycle(experts=4, top_k=2)").run(dense)
    assert len(router_weights(mixture.graph)) == 2 == len(expert_weights(mixture.graph))
