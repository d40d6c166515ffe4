"""Which calls of a module are heard; `test_monitor.py` has real models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moec.routing.tally import Choice
from moec.training.listening import listen
from tests import zoo


class Experts(nn.Module):
    """Called with ids and weights in whatever order, as transformers' are."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(4, 8, 8) * 0.1) for _ in range(2))

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        outputs = torch.einsum("th,ehi,eij->etj", x, self.up, self.down)
        rows = outputs[index, torch.arange(len(x))[:, None]]
        return (rows * weights.unsqueeze(-1)).sum(1)


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


class Block(nn.Module):
    """A router with a temperature, which 1 makes a plain softmax or another score."""

    def __init__(self, temperature: float = 1.0, score: Callable[[Tensor], Tensor] = softmax) -> None:
        super().__init__()
        self.score = score
        torch.manual_seed(0)
        self.gate, self.experts, self.temperature = nn.Linear(8, 4), Experts(), temperature

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.score(self.gate(x) / self.temperature).topk(2, -1)
        return self.experts(x, index=ids, weights=weights / weights.sum(-1, keepdim=True))  # type: ignore[no-any-return]


def heard(block: nn.Module, x: Tensor, wanted: bool = True) -> list[tuple[str, Choice]]:
    found: list[tuple[str, Choice]] = []
    ends, _ = listen(block, lambda *_: wanted, lambda name, choice, _mask: found.append((name, choice)))
    block(x)
    for end in ends:
        end()
    block(x)
    return found


def test_ids_weights_and_scores_of_a_hand_written_block() -> None:
    block, x = Block(), torch.randn(6, 8)
    ((name, choice),) = heard(block, x)
    want = block.gate(x).softmax(-1)
    assert name == "experts" and torch.equal(choice.ids, want.topk(2, -1).indices)
    assert choice.shares is not None and torch.allclose(choice.shares, want, atol=1e-5)
    assert heard(block, x, wanted=False) == []


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_scores_that_do_not_explain_the_weights_are_not_told(temperature: float) -> None:
    ((_, choice),) = heard(Block(temperature), torch.randn(6, 8))
    assert choice.shares is None and choice.ids.shape == (6, 2)


def test_a_module_without_experts_is_not_hooked() -> None:
    assert listen(nn.Linear(3, 3), lambda *_: True, lambda *_: None) == ([], [])


def test_a_dense_program_is_not_hooked_and_hides_nothing_beside_it() -> None:
    dense = zoo.captured("llama").module(trainable=True)
    assert listen(dense, lambda *_: True, lambda *_: None) == ([], [])
    ends, names = listen(nn.ModuleDict({"teacher": dense, "block": Block()}), lambda *_: True, lambda *_: None)
    assert ends and names == ["block.experts"]


def test_logits_that_are_alike_decide_no_score_for_good() -> None:
    block, x, found = Block(score=torch.sigmoid), torch.randn(6, 8), list[Choice]()
    trained = block.gate.weight.detach().clone() * 4
    nn.init.zeros_(block.gate.weight)
    nn.init.zeros_(block.gate.bias)
    listen(block, lambda *_: True, lambda _name, choice, _mask: found.append(choice))
    for weight in (block.gate.weight, trained):
        block.gate.weight.data = weight.detach()
        block(x)
    want = block.gate(x).sigmoid()
    assert found[0].shares is not None and torch.allclose(found[0].shares, torch.full((6, 4), 0.25))
    assert found[1].shares is not None and torch.allclose(found[1].shares, want / want.sum(-1, keepdim=True), atol=1e-5)
