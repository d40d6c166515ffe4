"""Experts on several devices, on paper: what every token sends."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

from moec.errors import MoecError
from moec.planning.shape import Shape


@dataclass(frozen=True)
class ExpertParallel:
    """Experts of every layer split evenly over ranks.

    Attributes:
        ranks: devices that share the experts.
        reached: expected ranks that a token's experts lie on, in the layer with most experts.
        bytes_a_token: that one forward sends for a token: to those ranks (dispatch) and back (combine), all layers.
        tensor_parallel_bytes: what two all-reduces of the hidden vector a layer would send in its place.
    """

    ranks: int
    reached: float
    bytes_a_token: float
    tensor_parallel_bytes: float


def ranks_reached(experts: int, top_k: int, ranks: int) -> float:
    """Expected ranks that hold one of top_k experts, drawn without repetition: P (1 - C(E - E/P, k) / C(E, k)).

    Raises:
        MoecError: M201 when the ranks do not divide the experts.
    """
    if ranks < 1 or experts % ranks:
        fix = f"--ranks {next(n for n in range(min(max(ranks, 1), experts), 0, -1) if experts % n == 0)}"
        raise MoecError("M201", f"{ranks} ranks do not divide {experts} experts", "--ranks", fix)
    return ranks * (1 - comb(experts - experts // ranks, top_k) / comb(experts, top_k))


def expert_parallel(shape: Shape, ranks: int, dispatch_bits: int = 16, combine_bits: int = 16) -> ExpertParallel:
    """What expert parallelism sends under uniform routing, and tensor parallelism beside it.

    Args:
        shape: a mixture.
        ranks: devices.
        dispatch_bits, combine_bits: of a number on the way there and back; DeepSeek-V3 sends 8 and 16.

    Raises:
        MoecError: M201 for a dense model, and for ranks that do not divide its experts.
    """
    if not shape.mixtures:
        raise MoecError("M201", f"{shape.name} has no experts to put on ranks", "--ranks", "leave --ranks out")
    reached = [ranks_reached(m.experts, m.top_k, ranks) for m in shape.mixtures]
    sent = sum(n * m.hidden for n, m in zip(reached, shape.mixtures, strict=True)) * (dispatch_bits + combine_bits) / 8
    all_reduce = 2 * 2 * (ranks - 1) / ranks  # a ring sends each number twice but for its own share
    return ExpertParallel(ranks, max(reached), sent, shape.layers * all_reduce * shape.hidden * 2)
