"""What a compile may hold in memory (`--max-ram`): what that decides, and what is said where it is too little.

Counted is what is the process's own. Pages of mapped files, the model's and the engine's, are resident too while they
are read, but the system drops them when it needs room. The limit stands in the place of the machine's memory wherever
something is decided by that. It also chooses how much of a weight is read at a time, and whether the proof runs the
untouched model in memory or the captured graph weight by weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from moec.compiler.options import Options, Verify
from moec.errors import MoecError
from moec.execution.memory import OwnPeak, limited, own_bytes
from moec.execution.streaming import largest_piece_bytes
from moec.frontend.source import Source
from moec.program.program import Program
from moec.progress import Progress
from moec.proof.exam import Exam
from moec.proof.inputs import compared_bytes
from moec.proof.sizes import verification_sizes
from moec.shown import size_of
from moec.weights.weight import BLOCK_BYTES, blocks_of

MIB = 2**20
RUNTIME_BYTES = 160 * MIB  # a runtime, its libraries and its arenas: 130 MiB were measured for ONNX Runtime
LEAST_BLOCK_BYTES = 2 * MIB
HELD = 10  # pieces of weights at a time, with what is computed from them; 3 to 6 were measured
FULL = 7  # times the weights, beside the untouched model: both engines prepared, both graphs; 5 were measured
VALUES = 6  # of a layer or of the logits, at a time


@contextmanager
def kept_below(most_bytes: int | None, progress: Progress) -> Iterator[None]:
    """Within, a compile holds no more than this, as far as moec decides it; at the end the peak is told. None: no limit
    of the user's.

    Raises:
        MoecError: M220 where Python and the libraries alone take more.
    """
    if most_bytes is None:
        yield
        return
    base = own_bytes() + RUNTIME_BYTES
    _require(base + HELD * LEAST_BLOCK_BYTES, most_bytes, "any compile")
    block = max(LEAST_BLOCK_BYTES, min(BLOCK_BYTES, (most_bytes - base) // HELD))
    with ExitStack() as stack:
        stack.enter_context(limited(most_bytes))
        stack.enter_context(blocks_of(block))
        peak = stack.enter_context(OwnPeak())
        yield
    progress.stage("memory")
    progress.done(f"peak {size_of(peak.bytes)} of its own, of {size_of(most_bytes)} allowed")
    if peak.bytes > most_bytes:
        over = f"{size_of(peak.bytes)} were held, MORE than the {size_of(most_bytes)} of --max-ram"
        progress.warn(f"{over}, by which moec plans, and which it cannot enforce")


def within_limit(source: Source, captured: Program, options: Options) -> Verify:
    """How the proof runs the untouched model, see `moec.compiler.proving.choose_reference`, so that a limit is kept.

    Raises:
        MoecError: M220 where the model needs more, however it is read, or more for what `verify` asks for.
    """
    most = options.max_ram
    if most is None:
        return options.verify
    weights = captured.size_bytes
    base = own_bytes() + RUNTIME_BYTES
    least = base + streamed_bytes(captured, options)
    _require(least, most, f"compiling {source.text}")
    full = full_bytes(least, source, weights)
    if options.verify == "full":
        _require(full, most, "comparing with the untouched model in memory", "pass --verify streamed, or ")
    return "full" if options.verify != "streamed" and full <= most else "streamed"


def full_bytes(least_bytes: int, source: Source, weights_bytes: int) -> int:
    """What a compile holds whose proof runs the untouched model in memory.

    Args:
        least_bytes: what it holds where weights are read piece by piece. source: the model, or one on paper.
        weights_bytes: of what is captured of the whole model.
    """
    return least_bytes + source.loaded_bytes + FULL * weights_bytes


def streamed_bytes(captured: Program, options: Options) -> int:
    """What a compile holds beside libraries where nothing is kept in memory that can be read again."""
    found = HELD * max(LEAST_BLOCK_BYTES, largest_piece_bytes(captured))
    found += max(compared_bytes(captured, sizes) for sizes in verification_sizes(captured.inputs))
    if options.exam or any(item.contract_of() == "approximate" for item in options.pipeline):
        widest = max((d for o in captured.output_signature() for d in o.shape[-1:] if isinstance(d, int)), default=1)
        found += VALUES * (options.window or Exam.window) * widest * 4
    text = options.calibration_text
    if text is not None:  # what is fitted to data stays in memory, one byte a number at most
        matrices = [w for w in captured.weights.values() if len(w.shape) > 1]
        tokens = options.calibration_tokens or text.tokens
        found += sum(w.size_bytes // w.dtype.itemsize for w in matrices)
        found += VALUES * tokens * max(w.shape[-1] for w in matrices) * 4
    return found


def _require(least_bytes: int, most_bytes: int, work: str, otherwise: str = "") -> None:
    if least_bytes > most_bytes:
        what = f"{work} needs about {size_of(least_bytes)}, and {size_of(most_bytes)} are allowed"
        enough = math.ceil(1.03 * least_bytes / MIB)
        raise MoecError("M220", what, "--max-ram", f"{otherwise}allow as much: --max-ram {enough}MiB")
