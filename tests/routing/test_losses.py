"""Losses of routers: by hand, and against transformers' functions where it has them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from moec.errors import MoecError
from moec.routing.losses import sequence_loss, switch_loss, transformers_loss, update_bias, z_loss

EVEN = torch.eye(4).repeat(3, 1) * 30  # 12 tokens, each sure of one of four experts
ONE = torch.tensor([0.0, 0.0, 30.0, 0.0]).repeat(12, 1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: float | Tensor) -> bool:
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), rtol=1e-5)


def test_switch_is_one_where_experts_are_chosen_alike_and_e_where_one_takes_all() -> None:
    assert close(switch_loss(EVEN), 1) and close(switch_loss(ONE), 4)
    # f is shared by two, P by all: 4 * (1/2 * 1/4 + 1/2 * 1/4), for any K that divides the choices evenly
    assert close(switch_loss(torch.zeros(12, 4), top_k=2), 1)
    assert close(switch_loss(EVEN[EVEN.argmax(-1) < 2]), 2)  # two experts alone: 4 * (1/2 * 1/2 + 1/2 * 1/2)
    assert close(switch_loss(torch.cat([EVEN, ONE]), mask=torch.tensor([1] * 12 + [0] * 12)), 1)
    assert not close(switch_loss(torch.cat([EVEN, ONE])), 1)


def test_switch_is_that_of_transformers_for_one_group_and_one_expert_a_token() -> None:
    logits = drawn(1, 40, 6)
    probabilities = logits.softmax(-1)
    want = switch.load_balancing_loss_func(probabilities, probabilities.argmax(-1))
    assert close(switch_loss(logits), want) and not close(switch_loss(logits, 2), want)


def test_the_variant_of_transformers_is_k_in_balance_and_counts_layers_together() -> None:
    assert close(transformers_loss((EVEN, EVEN), [1, 1]), 1) and close(transformers_loss((ONE,), [1]), 4)
    assert close(transformers_loss((EVEN,), [2]), 2)  # K, where switch_loss is 1
    other = ONE.roll(1, 1)
    assert close(transformers_loss((ONE, other), [1, 1]), 2)  # two collapsed layers look half as bad
    assert close((switch_loss(ONE) + switch_loss(other)) / 2, 4)


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_function_of_transformers(masked: bool) -> None:
    logits = tuple(drawn(24, 6, seed=n) for n in range(3))
    mask = (drawn(4, 6) > -0.5).long() if masked else None
    assert close(transformers_loss(logits, [2] * 3, mask), load_balancing_loss_func(logits, 6, 2, mask))
    assert close(transformers_loss((logits[0],), [1]), switch_loss(logits[0]))


def test_layers_of_other_sizes_are_averaged_and_a_mask_of_another_length_is_not_looked_at() -> None:
    both = transformers_loss((EVEN, torch.zeros(12, 2)), [1, 2])
    assert close(both, (1 + 2) / 2)
    mixed = torch.cat([EVEN[:8], ONE[:4]])
    whole = transformers_loss((mixed,), [1])
    assert close(transformers_loss((mixed,), [1], torch.ones(2, 5)), whole)
    assert not close(transformers_loss((mixed,), [1], torch.tensor([[1] * 8 + [0] * 4])), whole)


def test_the_loss_of_a_sequence_sees_what_a_batch_hides() -> None:
    collapsed = torch.stack([ONE, ONE.roll(1, 1)])  # each sequence at one expert, another in each
    assert close(sequence_loss(collapsed, 1, "softmax"), 4)
    assert close(switch_loss(collapsed.flatten(0, 1)), 2)
    assert close(sequence_loss(torch.stack([EVEN, EVEN]), 1, "softmax"), 1)
    # sigmoid scores 1/2 and sigmoid(2) by hand, shares over their sum; the first expert is always chosen
    logits = torch.tensor([[[2.0, 0.0]] * 5])
    share = torch.sigmoid(torch.tensor(2.0)) / (torch.sigmoid(torch.tensor(2.0)) + 0.5)
    assert close(sequence_loss(logits, 1), 2 * share)
    assert close(sequence_loss(logits, 1, ids=torch.ones(1, 5, 1, dtype=torch.int64)), 2 * (1 - share))


def test_padding_is_no_part_of_a_sequence() -> None:
    logits, mask = drawn(2, 8, 4), torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    want = (sequence_loss(logits[:1], 2) + sequence_loss(logits[1:, :5], 2)) / 2
    assert close(sequence_loss(logits, 2, mask=mask), want) and not close(sequence_loss(logits, 2), want)
    gone = torch.tensor([[1] * 8, [0] * 8])
    assert close(sequence_loss(logits, 2, mask=gone), sequence_loss(logits[:1], 2))


def test_z_loss_by_hand_and_as_transformers_has_it() -> None:
    assert close(z_loss(torch.zeros(3, 7)), math.log(7) ** 2)
    logits = drawn(2, 9, 5)
    assert close(z_loss(logits), switch.router_z_loss_func(logits))
    mask = torch.tensor([[1] * 9, [0] * 9])
    assert close(z_loss(logits, mask), z_loss(logits[:1])) and not close(z_loss(logits), z_loss(logits[:1]))


def test_losses_have_gradients_that_balance() -> None:
    logits = (drawn(64, 4) + torch.tensor([2.0, 0, 0, 0])).requires_grad_()
    for loss in (switch_loss(logits), transformers_loss((logits,), [1]), sequence_loss(logits[None], 1)):
        (found,) = torch.autograd.grad(loss, logits)
        assert found.sum(0)[0] > 0 > found.sum(0)[1:].sum()  # a step lowers the favoured expert


def test_the_bias_of_overloaded_experts_falls_by_one_step() -> None:
    bias = torch.zeros(4)
    assert update_bias(bias, torch.tensor([7, 1, 4, 4]), 0.01) is bias
    assert torch.equal(bias, torch.tensor([-0.01, 0.01, 0.0, 0.0]))


def test_updates_of_the_bias_balance_a_skewed_router() -> None:
    scores, bias = torch.sigmoid(drawn(512, 8) + torch.linspace(-1, 1, 8)), torch.zeros(8)

    def most() -> float:
        counts = torch.bincount((scores + bias).topk(2, -1).indices.flatten(), minlength=8)
        update_bias(bias, counts, 0.01)
        return float(counts.max() * 8 / counts.sum() - 1)

    first, *_, last = (most() for _ in range(120))
    assert first > 1 > 0.15 > last


def test_numbers_that_no_layer_has_are_refused() -> None:
    for call in (
        lambda: switch_loss(EVEN, 0),
        lambda: switch_loss(EVEN, 5),
        lambda: sequence_loss(EVEN[None], 5),
        lambda: transformers_loss((EVEN,), [0]),
        lambda: transformers_loss((EVEN, EVEN), [1]),
        lambda: transformers_loss((), []),
    ):
        with pytest.raises(MoecError) as caught:
            call()
        assert caught.value.code == "M201" and caught.value.fix
