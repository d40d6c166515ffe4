"""What looks at more than one token is no mixture of the dialect, however far a trial is from showing it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.recognition.hand_written_mixtures import Mixture as Said
from moec.recognition.hand_written_mixtures import find_mixtures
from moec.recognition.hand_written_region import NotAMixture
from moec.recognition.token_wise import looks_beyond_a_token
from tests.mixtures import WAYS, Mixture, OneHot, mixture, source_of
from tests.written import FOUND


class Weighed(OneHot):
    """Weights `[T, E]` that a subclass changes by more than the token."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def mix(self, x: Tensor) -> Tensor:
        gates = self.change(self.gates(x), x)
        return torch.einsum("te,ted->td", gates, torch.stack([expert(x) for expert in self.experts], 1))


class FloatCapacity(Weighed):
    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * ((gates > 0).cumsum(0).float() <= 12000.0)


class CapacityInBlocks(Weighed):
    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * ((gates > 0).cumsum(0) // 1600 <= 1500)


class Dropped(Weighed):
    """An expert with too many tokens takes none."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * ((gates > 0).sum(0, keepdim=True) < 100_000)


class Lonely(Weighed):
    """One with fewer than two tokens takes none."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * ((gates > 0).sum(0, keepdim=True) >= 2)


class Early(Weighed):
    """Places are compared."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * (torch.arange(x.shape[0]) < 50_000)[:, None]


class Place(Weighed):
    """Places are counted with."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates + 1e-9 * gates * torch.arange(x.shape[0])[:, None]


class First(Weighed):
    """The first token's weights are everybody's."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates[:1].expand_as(gates)


class OverAll(Weighed):
    """Weights are divided by what all tokens have."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates / gates.amax(0, keepdim=True).clamp(min=1.0)


class Normalised(Weighed):
    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * (1.0 + 0.0 * (x @ x.T).softmax(-1).sum(-1, keepdim=True))


class Table(Weighed):
    """Says of each place whether it counts; those of all trials do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.arange(20_000) < 17_000)

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * self.counts[torch.arange(x.shape[0])][:, None]


class TableCut(Table):
    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * self.counts[: x.shape[0], None]


class Many(Weighed):
    """More tokens, other weights."""

    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * (1 + x.shape[0] // 100_000)


class ManyAsATensor(Weighed):
    def change(self, gates: Tensor, x: Tensor) -> Tensor:
        return gates * (1.0 + (torch.full((), x.shape[0]) * 1e-5).floor())


BEYOND: tuple[type[Mixture], ...] = (
    FloatCapacity, CapacityInBlocks, Dropped, Lonely, Early, Place, First, OverAll, Normalised, Table, TableCut, Many,
    ManyAsATensor,
)  # fmt: skip


@pytest.mark.parametrize("way", BEYOND)
def test_what_hangs_on_other_tokens_is_left(way: type[Mixture]) -> None:
    ((_, said),) = find_mixtures(source_of(mixture(way)).capture())
    assert isinstance(said, NotAMixture) and "hangs on others" in str(said)


@pytest.mark.parametrize("way", [w for w in (*WAYS, *FOUND) if w.__name__ not in ("Switch",)])
def test_rows_may_be_picked_and_put_back(way: type[Mixture]) -> None:
    program = source_of(mixture(way)).capture()
    assert looks_beyond_a_token(program.graph.nodes) is None


class TableOfChosen(Table):
    """Looked up for the tokens that chose an expert."""

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, nth = torch.where(ids == e)
            out[token] += weights[token, nth, None] * expert(x[token]) * self.counts[token][:, None]
        return out


class Filled(OneHot):
    """Weights are multiplied by a number that is made as a tensor without dimensions."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().choice(x)
        return weights * torch.full((), 2.0), ids


@pytest.mark.parametrize(("way", "why"), [(TableOfChosen, "20,000"), (Filled, "no routing rule")])
def test_what_no_trial_shows_and_what_no_rule_says_is_left(way: type[Mixture], why: str) -> None:
    ((_, said),) = find_mixtures(source_of(mixture(way)).capture())
    assert isinstance(said, NotAMixture) and why in str(said)


class Reversed(Mixture):
    """The experts of one layer in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(mixture(OneHot, seed) for seed in range(2))

    def mix(self, x: Tensor) -> Tensor:
        for layer, order in zip(self.layers, (1, -1), strict=True):
            outs = torch.stack([expert(x) for expert in list(layer.experts)[::order]], 1)  # type: ignore[arg-type]
            x = x + torch.einsum("te,ted->td", layer.gates(x), outs)  # type: ignore[operator]
        return x


def test_alike_are_only_those_whose_experts_stand_in_the_same_order() -> None:
    first, second = (said for _, said in find_mixtures(source_of(mixture(Reversed)).capture()))
    assert isinstance(first, Said) and isinstance(second, NotAMixture)


class Bounded(OneHot):
    """Tokens are cut before the experts see them; none of a usual size is."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        outs = torch.stack([expert(x.clamp(-100, 100)) for expert in self.experts], 1)
        return torch.einsum("te,ted->td", gates, outs)


class Saturated(OneHot):
    """Chosen by a sigmoid, weighed by the softmax of logits."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(x)
        ids = logits.sigmoid().topk(self.top_k, -1).indices
        return logits.gather(1, ids).softmax(-1), ids


@pytest.mark.parametrize("way", [Bounded, Saturated])
def test_what_shows_on_large_numbers_alone_is_left(way: type[Mixture]) -> None:
    ((_, said),) = find_mixtures(source_of(mixture(way)).capture())
    assert isinstance(said, NotAMixture)
