"""Warnings about a router, each with the threshold that it passed."""

from __future__ import annotations

from dataclasses import dataclass

from moec.routing.figures import EXPECTED, STARVED, RouterFigures

COLLAPSE = 0.25  # effective experts, as a share of the way from K (the worst) to E (the best)
INDIFFERENT = 0.99  # entropy of a token's scores, as a share of ln E
COPIES = 0.99  # mean cosine between experts


@dataclass(frozen=True)
class Alarm:
    """Something about a router that is seldom meant.

    Attributes:
        layer: the block's name.
        kind: `collapse`, `dead`, `starved`, `indifferent`, `copies` or `short`.
        what: one sentence with the figure and the threshold.
    """

    layer: str
    kind: str
    what: str


def thresholds() -> dict[str, float]:
    """The thresholds by the kind of alarm."""
    return {
        "collapse": COLLAPSE,
        "dead": 0,
        "starved": STARVED,
        "indifferent": INDIFFERENT,
        "copies": COPIES,
        "short": EXPECTED,
    }


def alarms_of(found: RouterFigures) -> list[Alarm]:
    """What is wrong with a router, or with what was seen of it."""
    e, k, alarms = found.experts, found.top_k, []

    def alarm(kind: str, what: str) -> None:
        alarms.append(Alarm(found.layer, kind, what))

    seen = found.tokens * k / e
    if seen < EXPECTED:
        alarm("short", f"{seen:.1f} choices an expert were seen, below {EXPECTED}: no expert is called dead or starved")
    bound = k + COLLAPSE * (e - k)
    if k < e and found.effective_experts < bound:
        alarm("collapse", f"{found.effective_experts:.1f} of {e} experts in effect, below {bound:.1f}")
    if found.dead:
        alarm("dead", f"{len(found.dead)} of {e} experts got no token: {_listed(found.dead)}")
    if found.starved:
        alarm("starved", f"{len(found.starved)} of {e} experts got less than {STARVED:g} of the mean load:"
              f" {_listed(found.starved)}")  # fmt: skip
    if found.entropy is not None and k < e and found.entropy > INDIFFERENT:
        alarm("indifferent", f"the entropy of its scores is {found.entropy:.4f} of the most, above {INDIFFERENT:g}")
    if found.similarity is not None and found.similarity.mean > COPIES:
        what = f"the mean cosine of the experts' {found.similarity.of} is {found.similarity.mean:.4f}, above {COPIES:g}"
        alarm("copies", what)
    return alarms


def _listed(experts: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, experts[:8]))
    return f"{shown}, …" if len(experts) > 8 else shown
