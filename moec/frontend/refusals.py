"""Why a model could not be captured: the reason, the line of the model where it happened, and ways out that were
tried."""

from __future__ import annotations

import inspect
import linecache
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.frontend.domain import Domain

Dims = Mapping[str, Sequence[str | int | None]]
_TORCH = str(Path(torch.__file__).parent)
_MOEC = str(Path(__file__).parent.parent)
_PYTHON = sysconfig.get_path("stdlib")


def reason(error: Exception) -> str:
    """The first line of torch's message, and the first item of the list that follows where it only announces one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    head, announces, _ = lines[0].partition("! For more information")
    detail = next((line for line in lines[1:] if line.startswith("- ")), "") if announces else ""
    return f"{head} {detail}".strip()


def place_of(error: BaseException) -> str:
    """The innermost line of the model's own code that an error came through, with its text; `capture` where none
    did."""
    found = None
    for each in _chain(error):
        for frame in traceback.extract_tb(each.__traceback__):
            if not frame.filename.startswith((_TORCH, _MOEC, "<")) and not _is_python(frame.filename):
                found = frame
        if found is not None:
            break
    if found is None:
        return "capture"
    line = (found.line or linecache.getline(found.filename, found.lineno or 0)).strip()
    return f"{Path(found.filename).name}:{found.lineno} in {found.name}: {line[:100]}"


def came_through(error: BaseException, cls: type) -> bool:
    """Whether an error was raised in the code of a class, or below it."""
    try:
        lines, start = inspect.getsourcelines(cls)
        file = inspect.getsourcefile(cls)
    except (OSError, TypeError):  # no file holds it
        return False
    frames = [frame for each in _chain(error) for frame in traceback.extract_tb(each.__traceback__)]
    return any(f.filename == file and start <= (f.lineno or 0) < start + len(lines) for f in frames)


def _is_python(filename: str) -> bool:
    return filename.startswith(_PYTHON) and "site-packages" not in filename


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error's first cause first: torch wraps what a model raises."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return reversed(causes)


def way_out(error: Exception) -> str:
    """What to change in the model; settings that would help are found by trying them, see `with_fixed_sizes`."""
    if not depends_on_data(error):
        return "change that line of the model so that torch.export takes it"
    line = place_of(error)
    if "expert" in line.lower():
        return (
            "the loop over experts depends on data: write it with torch.ops.moec.route and torch.ops.moec.experts, "
            "or without branches on tensor values"
        )
    return "write that line without a branch or a shape that depends on tensor values, e.g. with torch.where"


def depends_on_data(error: BaseException) -> bool:
    """Whether torch could not go on without the values of tensors."""
    return any("DataDependent" in type(each).__name__ for each in _chain(error))


def with_fixed_sizes(
    error: MoecError, dynamic: Dims, attempt: Callable[[Dims], Any], say: Callable[[Dims], str]
) -> MoecError:
    """The refusal of a capture (M207), with the way out of fixing a dynamic dimension, or all of them, where that was
    tried and helped.

    Args:
        error: of the capture; one of another code is returned as it is.
        dynamic: the names of dimensions that were asked for.
        attempt: captures with others; raises MoecError when it cannot.
        say: how a user asks for these dimensions.
    """
    names = list(dict.fromkeys(d for shape in dynamic.values() for d in shape if isinstance(d, str)))
    if error.code != "M207" or not names:
        return error
    for fixed in [*([name] for name in names), names] if len(names) > 1 else [names]:
        given = {n: tuple(None if d in fixed else d for d in shape) for n, shape in dynamic.items()}
        try:
            attempt(given)
        except MoecError:
            continue
        fix = f"it can be captured where {' and '.join(fixed)} {'is' if len(fixed) == 1 else 'are'} fixed: {say(given)}"
        return MoecError(error.code, error.what, error.where, fix)
    return error


def say_dynamic(dynamic: Dims) -> str:
    """How a user of Python asks for these dynamic dimensions."""
    return f"pass dynamic={ {name: tuple(dims) for name, dims in dynamic.items()} }"


def say_inputs(dynamic: Dims, samples: Mapping[str, Tensor], domains: Mapping[str, Domain]) -> str:
    """How a user of the command line asks for them, at the samples' sizes elsewhere."""

    def spec(name: str, dims: Sequence[str | int | None]) -> str:
        sample = samples[name]
        sizes = ",".join(d if isinstance(d, str) else str(n) for d, n in zip(dims, sample.shape, strict=False))
        return f"{name}={sizes}:{str(sample.dtype)[6:]}" + (
            "" if sample.is_floating_point() else f"<{domains[name].high}"
        )

    return "pass " + " ".join(f"--input '{spec(name, dims)}'" for name, dims in dynamic.items())
