"""What routers choose for a text, read from moec's own operators."""

from __future__ import annotations

import pytest
import torch

from moec.errors import MoecError
from moec.experts.routed_text import RoutedText
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import text_inputs
from moec.routing.tally import Choice
from tests import zoo

IDS = torch.randint(3, zoo.VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))


def choices(routed: RoutedText, alike: bool = False) -> dict[str, list[Choice]]:
    return routed.run([text_inputs(routed.program.inputs, ids) for ids in IDS.split(2)], alike)


def test_choices_are_those_of_the_untouched_model() -> None:
    """The router's own outputs in eager transformers, window by window."""
    model, seen = zoo.build("mixtral"), list[tuple[torch.Tensor, torch.Tensor]]()
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _m, _i, output: seen.append((output[2], output[1])))
    with torch.inference_mode():
        for ids in IDS.split(2):
            model(input_ids=ids)
    found = choices(RoutedText(zoo.captured("mixtral")))
    got = [found[f"model.layers.{k}.mlp.experts"][sample] for sample in (0, 1) for k in (0, 1)]
    for choice, (ids, weights) in zip(got, seen, strict=True):
        assert torch.equal(choice.ids, ids) and torch.allclose(choice.weights, weights, atol=1e-5)
        assert choice.shares is not None and torch.allclose(choice.shares.sum(-1), torch.ones(24), atol=1e-5)
    assert not torch.equal(got[0].ids, got[1].ids)


def test_a_fused_program_tells_the_same() -> None:
    fused, _ = Pipeline.parse("find-moe, fuse-moe").run(zoo.captured("mixtral"))
    want, got = choices(RoutedText(zoo.captured("mixtral"))), choices(RoutedText(fused))
    for name, both in want.items():
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(both, got[name], strict=True))


def test_copies_say_the_same_and_random_experts_do_not() -> None:
    copies, _ = Pipeline.parse("upcycle(experts=4, top_k=2)").run(zoo.captured("llama"))
    for program, least, most in ((copies, 0.9999, 1.0001), (zoo.captured("mixtral"), -0.3, 0.3)):
        routed = RoutedText(program)
        choices(routed, alike=True)
        near = list(routed.similarity.values())
        assert len(near) == 2 and all(s is not None and least < s.mean < most for s in near)


def test_nothing_is_computed_or_kept_behind_the_last_mixture() -> None:
    routed = RoutedText(zoo.captured("mixtral"))
    results = next(n for n in routed.program.graph.nodes if n.op == "output").args[0]
    assert results == (routed.mixtures[-1].node,)
    assert len(zoo.captured("mixtral").outputs) == 5  # logits, keys and values of two layers: the model's own stay
    assert not any("lm_head" in str(n.target) for n in routed.program.graph.nodes)


def test_a_dense_model_has_no_router() -> None:
    with pytest.raises(MoecError, match="no mixture") as caught:
        RoutedText(zoo.captured("llama"))
    assert caught.value.code == "M201"
