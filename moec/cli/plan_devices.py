"""The table of `moec plan --device`: how many devices a situation takes, and how fast one runs it."""

from __future__ import annotations

from moec.planning.estimate import Estimate, Situation
from moec.planning.step import Time
from moec.shown import span_of

Row = tuple[str, ...]
RIGHT = (2, 3, 4, 5)  # columns of figures


def device_rows(found: Estimate) -> list[Row]:
    """Head and rows; nothing where no device is asked for."""
    rows = [_row(s) for s in found.situations if s.device]
    head: Row = ("device", "format", "batch", "needed", "tokens/s", "prompt s", "bound by")
    return [head, *rows] if rows else []


def _row(s: Situation) -> Row:
    decode = span_of(s.batch / s.decode_time.high, s.batch / s.decode_time.low) if s.decode_time else "–"
    prompt = span_of(s.prompt_time.low, s.prompt_time.high) if s.prompt_time else "–"
    needed = str(s.devices) if s.devices else "none fits"
    return (s.device or "", s.format, str(s.batch), needed, decode, prompt, _bounds(s.decode_time, s.prompt_time))


def _bounds(decode: Time | None, prompt: Time | None) -> str:
    bounds = [time.bound for time in (decode, prompt) if time]
    return bounds[0] if len(set(bounds)) == 1 else ", ".join(bounds)
