"""Experts on several devices, on paper: what every token sends."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, prod

from moec.errors import MoecError
from moec.planning.balance import Balance, balance
from moec.planning.load import UNIFORM, Load
from moec.planning.shape import Mixture, Shape
from moec.planning.tensor import reduced_bytes


@dataclass(frozen=True)
class ExpertParallel:
    """Experts of every layer split evenly over ranks.

    Attributes:
        ranks: devices that share the experts.
        reached: expected ranks that a token's experts lie on, in the layer where they are most.
        bytes_a_token: that one forward sends for a token: to those ranks (dispatch) and back (combine), all layers.
        tensor_parallel_bytes: what two all-reduces of the hidden vector a layer would send in its place.
        remote: those of the reached ranks that the token itself is not on, when texts lie on the ranks evenly.
        wire_bytes: that leave a device for a token: what goes to remote ranks, and comes back.
        balance: how even the ranks are, and what evens them.
    """

    ranks: int
    reached: float
    bytes_a_token: float
    tensor_parallel_bytes: float
    remote: float = 0.0
    wire_bytes: float = 0.0
    balance: Balance | None = None


def ranks_reached(experts: int, top_k: int, ranks: int) -> float:
    """Expected ranks that hold one of top_k experts, drawn without repetition: P (1 - C(E - E/P, k) / C(E, k)).

    Raises:
        MoecError: M201 when the ranks do not divide the experts.
    """
    if ranks < 1 or experts % ranks:
        fix = f"--ranks {next(n for n in range(min(max(ranks, 1), experts), 0, -1) if experts % n == 0)}"
        raise MoecError("M201", f"{ranks} ranks do not divide {experts} experts", "--ranks", fix)
    return ranks * (1 - comb(experts - experts // ranks, top_k) / comb(experts, top_k))


def ranks_reached_under(load: Load, layer: int, mixture: Mixture, ranks: int) -> float:
    """The same for a load that is not uniform: sum over ranks of 1 - product of (1 - p) of its experts, which lie in
    the order of their numbers. Choices count as independent, so that it is a little low: a token takes exactly k."""
    if load.uniform:
        return ranks_reached(mixture.experts, mixture.top_k, ranks)
    odds, each = load.chances(layer, mixture), mixture.experts // ranks
    return sum(1 - prod(1 - p for p in odds[k * each : (k + 1) * each]) for k in range(ranks))


def expert_parallel(
    shape: Shape, ranks: int, dispatch_bits: int = 16, combine_bits: int = 16, load: Load = UNIFORM
) -> ExpertParallel:
    """What expert parallelism sends, and tensor parallelism beside it.

    Args:
        shape: a mixture.
        ranks: devices.
        dispatch_bits, combine_bits: of a number on the way there and back; DeepSeek-V3 sends 8 and 16.
        load: how often experts are taken.

    Raises:
        MoecError: M201 for a dense model, and for ranks that do not divide its experts.
    """
    reached = _reached(shape, ranks, load)
    sent = _sent(shape, reached, dispatch_bits + combine_bits)
    return ExpertParallel(
        ranks,
        max(reached),
        sent,
        reduced_bytes(shape, ranks),
        max(reached) * (ranks - 1) / ranks,
        sent * (ranks - 1) / ranks,
        balance(shape, ranks, load),
    )


def wire_bytes(shape: Shape, ranks: int, load: Load = UNIFORM) -> float:
    """`ExpertParallel.wire_bytes` alone, in 16 bits both ways. Raises as `expert_parallel` does."""
    return _sent(shape, _reached(shape, ranks, load), 32) * (ranks - 1) / ranks


def _reached(shape: Shape, ranks: int, load: Load) -> list[float]:
    """Ranks that a token reaches in each layer."""
    if not shape.mixtures:
        raise MoecError("M201", f"{shape.name} has no experts to put on ranks", "--ranks", "leave --ranks out")
    for mixture in shape.mixtures:
        ranks_reached(mixture.experts, mixture.top_k, ranks)  # refuses what does not divide
    return [ranks_reached_under(load, place, m, ranks) for place, m in enumerate(shape.mixtures)]


def _sent(shape: Shape, reached: list[float], bits: int) -> float:
    return sum(n * m.hidden for n, m in zip(reached, shape.mixtures, strict=True)) * bits / 8
