"""The models that every backend must take: name -> passes that the user would name."""

from __future__ import annotations

from dataclasses import dataclass

from tests.zoo import architectures

UPCYCLE = "upcycle(experts=4, top_k=2)"


@dataclass(frozen=True)
class Case:
    """One model of the zoo and the passes that are named for it."""

    name: str
    pipeline: str


def cases() -> list[Case]:
    """Every architecture of the zoo: MoE models as they are, dense ones upcycled."""
    return [Case(n, "") for n in architectures()] + [Case(n, UPCYCLE) for n in architectures(dense=True)]
