"""What passes fit to a text: the last digits of such numbers hang on the kind of processor, and on the number of
threads, which decides in which order a product's numbers are added. So a later proof computes them as the compile
did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from moec.pipeline.pipeline import Pipeline

THREADS = "threads"  # in a manifest's environment
_MOST = 1024  # of them, that a manifest from anywhere may ask for
_KIND = {"cpu_capability": "processor", "torch": "torch"}  # what decides beside them, and what people call it


def where_fitted(pipeline: Pipeline) -> dict[str, str]:
    """For the environment of a manifest; nothing where no pass reads a text, since then threads decide nothing."""
    return {THREADS: str(torch.get_num_threads())} if _fits(pipeline) else {}


def as_recorded(here: Mapping[str, str], recorded: Mapping[str, str]) -> dict[str, str]:
    """This machine's environment for an engine whose files are taken over from an older manifest: with that one's
    threads, and with none where it names none, since nobody knows then how many there were."""
    others = {name: value for name, value in here.items() if name != THREADS}
    return others | ({THREADS: recorded[THREADS]} if THREADS in recorded else {})


@contextmanager
def as_fitted(recorded: Mapping[str, str], pipeline: Pipeline) -> Iterator[None]:
    """Within, PyTorch has as many threads as when an engine was compiled, by its manifest's environment."""
    now, then = torch.get_num_threads(), recorded.get(THREADS, "")
    if not _fits(pipeline) or not then.isdecimal() or not 0 < int(then) <= _MOST:
        yield
        return
    torch.set_num_threads(int(then))
    try:
        yield
    finally:
        torch.set_num_threads(now)


def fitted_elsewhere(recorded: Mapping[str, str], here: Mapping[str, str], pipeline: Pipeline) -> str:
    """What was another one when passes fitted numbers to a text, in words; empty where nothing was, or nothing was
    fitted. Both mappings are environments of manifests."""
    pairs = {word: (recorded.get(name), here.get(name)) for name, word in _KIND.items()}
    other = [f"{word} {then}, here {now}" for word, (then, now) in pairs.items() if then is not None and then != now]
    return f"passes fitted it to a text by {' and '.join(other)}" if other and _fits(pipeline) else ""


def _fits(pipeline: Pipeline) -> bool:
    return any(item.needs_calibration() for item in pipeline)
