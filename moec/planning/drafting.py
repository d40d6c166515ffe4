"""Speculative decoding: tokens that are checked at once take more experts than one does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moec.errors import MoecError
from moec.planning.costs import memory_on
from moec.planning.devices import Device
from moec.planning.formats import Format
from moec.planning.load import Load
from moec.planning.pace import decode_time, timed
from moec.planning.shape import Shape
from moec.planning.step import decode_step

LONGEST = 64  # tokens of a draft


@dataclass(frozen=True)
class Draft:
    """A step that checks a draft, beside one that writes a token.

    Attributes:
        format, device, batch: what was asked; no device where none was, or where the model does not fit on one
            or its times are not known.
        draft: tokens that are proposed; one more comes from the check itself.
        experts: distinct ones of a layer without a draft and with it, the means over layers.
        bytes: read by a step without and with it.
        slowdown: how much longer the step takes: from both times where there is a device, else from the bytes. As an
            interval, low and high.
        break_even: share of the proposed tokens that has to be accepted before drafting gains anything, likewise; above
            1 where it never does. The draft itself is taken to cost nothing, so the true figure is higher.
    """

    format: str
    device: str | None
    batch: int
    draft: int
    experts: tuple[float, float]
    bytes: tuple[float, float]
    slowdown: tuple[float, float]
    break_even: tuple[float, float]


def drafts(
    shape: Shape,
    formats: Sequence[Format],
    devices: Sequence[Device | None],
    batches: Sequence[int],
    context: int,
    draft: int,
    load: Load,
) -> Iterator[Draft]:
    """Every combination. Raises M201 for a draft outside of 1 to 64 tokens, and for a model that writes no text."""
    if not 1 <= draft <= LONGEST:
        raise MoecError("M201", f"a draft has 1 to {LONGEST} tokens, not {draft}", "--draft", "write --draft 3")
    if not shape.states:
        raise MoecError("M201", f"{shape.name} writes no text that could be drafted", "--draft", "leave --draft out")
    for format in formats:
        for batch in batches:
            known = [d for d in devices if d and timed(shape, format, d)]
            fitting = [d for d in known if memory_on(shape, format, d, batch, context).devices(d) == 1]
            for device in fitting if len(fitting) == len(devices) else [*fitting, None]:
                yield _draft(shape, format, device, batch, context, draft, load)


def accepted(share: float, draft: int) -> float:
    """Tokens that a step yields when each proposed one is accepted with this probability, up to the first that is not:
    1 + a + … + a^d (Leviathan et al. 2023, arXiv 2211.17192, equation 1)."""
    return sum(share**n for n in range(draft + 1))


def break_even(slowdown: float, draft: int) -> float:
    """The share of accepted tokens at which a step yields as many times more tokens as it takes longer; 0 where it
    takes no longer, above 1 where even all of them are not enough."""
    if slowdown <= 1:
        return 0.0
    if slowdown > draft + 1:
        return slowdown / (draft + 1)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle, draft) < slowdown else (low, middle)
    return high


def _draft(
    shape: Shape, format: Format, device: Device | None, batch: int, context: int, draft: int, load: Load
) -> Draft:
    steps = [decode_step(shape, format, batch, context, load, rows) for rows in (1, draft + 1)]
    ratio = steps[1].bytes / steps[0].bytes
    slow = (ratio, ratio)
    if device is not None:
        one, many = (decode_time(shape, format, device, batch, context, load, rows) for rows in (1, draft + 1))
        # both come from the same tables or the same roofline, so that their errors go together
        slow = (min(many.low / one.low, many.high / one.high), max(many.low / one.low, many.high / one.high))
    even = (break_even(slow[0], draft), break_even(slow[1], draft))
    experts, read = (steps[0].experts, steps[1].experts), (steps[0].bytes, steps[1].bytes)
    return Draft(format.name, device.name if device else None, batch, draft, experts, read, slow, even)
