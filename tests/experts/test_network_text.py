"""What a text brings to a network is looked at by blocks of tokens: never all neurons of all of it, and the result does
not hang on how large a block is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moec.experts import dense_network, network_text
from moec.experts.carving import Carving, Cut, cut
from moec.experts.dense_network import dense_of
from moec.experts.merged_refit import Arriving, refitted_expert
from moec.experts.network_text import NetworkText
from moec.recognition.ffn import Ffn, find_ffns
from tests import zoo

TOKENS, BLOCK, PROFILED = 3000, 128, 256
HOW = Carving(4, None, 3, "coactivation", "ridge", True, True, 0)


class Largest(TorchDispatchMode):
    """How many tokens' neurons an operator gave at most: of `[tokens, I]`, `[tokens, 2 * I]` or `[I, tokens]`. Nothing
    else may be as wide as the network."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.neurons, self.tokens = neurons, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, list | tuple) else [found]:
            wide = {self.neurons, 2 * self.neurons} & {*value.shape} if isinstance(value, Tensor) else set[int]()
            if wide and value.dim() >= 2:
                self.tokens = max(self.tokens, value.numel() // max(wide))
        return found


def network() -> Ffn:
    return find_ffns(zoo.captured("llama", cache=False))[0][0]


def arriving(ffn: Ffn) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, drift = (torch.randn(TOKENS, ffn.hidden, generator=generator) for _ in range(2))
    return x, 0.3 * drift


def in_blocks(patch: pytest.MonkeyPatch, block: int, kept: int) -> None:
    patch.setattr(dense_network, "BLOCK", block)
    patch.setattr(network_text, "_KEPT", kept)
    patch.setattr(network_text, "_PROFILED", PROFILED)


@pytest.mark.parametrize("partition", ["coactivation", "variation", "indicator", "rows"])
def test_no_operator_holds_all_neurons_of_all_tokens(partition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, BLOCK, 0)
    ffn = network()
    how = Carving(4, 1, 2, partition, "ridge", True, True, 0)
    with Largest(ffn.intermediate) as seen:
        made = Cut(NetworkText(dense_of(ffn), *arriving(ffn)), how)
        made.at(2)
        made.curve()
        made.slip(arriving(ffn)[0], 2)
    assert BLOCK <= seen.tokens <= PROFILED + BLOCK
    own = Arriving(*arriving(ffn), arriving(ffn)[1], torch.arange(TOKENS) % 8 == 0)
    with Largest(ffn.intermediate) as seen:
        refitted_expert(ffn, own)
    assert BLOCK <= seen.tokens <= PROFILED
    in_blocks(monkeypatch, 8192, 0)
    with Largest(ffn.intermediate) as seen:
        refitted_expert(ffn, own)
        Cut(NetworkText(dense_of(ffn), *arriving(ffn)), how)
    assert seen.tokens >= TOKENS - TOKENS // 8  # it is seen where it happens


def test_the_result_does_not_hang_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ffn, found = network(), list[Any]()
    for block, kept in ((100, 0), (100, 2**26), (8192, 2**26)):
        in_blocks(monkeypatch, block, kept)
        carved = cut(NetworkText(dense_of(ffn), *arriving(ffn)), HOW)
        own = Arriving(*arriving(ffn), arriving(ffn)[1], torch.arange(TOKENS) % 8 == 0)
        found.append((carved, refitted_expert(ffn, own)[0]))
    for carved, matrix in found[:-1]:
        whole, other = found[-1]
        assert carved.errors.carved == pytest.approx(whole.errors.carved, rel=1e-4)
        assert carved.step.taken == whole.step.taken
        for name in ("w_out", "b_out", "constant"):
            assert torch.allclose(getattr(carved.output, name), getattr(whole.output, name), atol=1e-4)
        assert torch.allclose(carved.router.weight, whole.router.weight, atol=1e-4)
        assert torch.allclose(matrix, other, atol=1e-5)


def test_mean_and_variance_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, 100, 0)
    ffn = network()
    text = NetworkText(dense_of(ffn), arriving(ffn)[0] + 2)
    hidden = dense_of(ffn).hidden(text.fitted.x).double()
    assert torch.allclose(text.mean.double(), hidden.mean(0), atol=1e-6)
    assert torch.allclose(text.variance.double(), hidden.var(0, correction=0), rtol=1e-5)
    assert len(text.fitted.x) == 2625 and len(text.judged.x) == 375 and len(text.profiled) <= PROFILED
