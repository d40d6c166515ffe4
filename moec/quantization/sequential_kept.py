"""What a run of `Sequential` makes, kept for the next compile as it is made: minutes to hours of work, from the same
model, text and grids. A run that was killed goes on behind the last node whose weights are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec.files import kept
from moec.program.program import Program
from moec.quantization.grid import Grid
from moec.recognition.weight_roles import Use
from moec.weights.digest import add_tensor
from moec.weights.remembered import keep, key_of, recall

HEAD = "facts"

Made = Mapping[int, Mapping[str, Tensor]]  # the tensors of each result, by its place in the list of what was to be done
Rounded = list[list[Any]]  # the matrices that were rounded to nearest, as JSON has them


def key_of_run(
    program: Program,
    todo: Sequence[tuple[Use, Grid]],
    inputs: Sequence[Mapping[str, Tensor]],
) -> str:
    """The hash of all that decides the results: the program's text, every number of its weights, the grids, and every
    number of the inputs."""
    content = hashlib.sha256()
    for weight in {id(w): w for w in program.weights.values()}.values():
        for block in weight.blocks():
            add_tensor(content, block)
    for batch in inputs:
        for name, value in batch.items():
            content.update(name.encode())
            add_tensor(content, value)
    jobs = [(use.name, use.node.name, use.place, grid) for use, grid in todo]
    return key_of("sequential", program.digest(), jobs, content.hexdigest())


class KeptRun:
    """The steps of one run, a node of the program each; the last thing that is written says that it is whole.

    Args:
        key: of the run, see `key_of_run`.
        room: whether the cache may become as large as all of it; else nothing is kept: a run that is larger would push
            out its own first steps and everything else.
    """

    def __init__(self, key: str, room: bool = True) -> None:
        self._key, self._room, self._steps, self._pieces = key, room, dict[str, None](), list[str]()

    def recall(self, step: str) -> tuple[Made, Rounded] | None:
        """What a step made in an earlier run, whole or not; None where that is not kept."""
        found = self._recall(step)
        if found is not None:
            self._steps[step] = None
        return found

    def keep(self, step: str, made: Made, rounded: Rounded) -> None:
        """Keep what a step made, at once: all of it or nothing. The pieces that it was kept in until now
        go."""
        if self._keep(step, made, rounded):
            self._steps[step] = None
            while self._pieces:
                kept.remove(_part(self._key, self._pieces.pop()))

    def recall_piece(self, step: str, number: int) -> tuple[Made, Rounded] | None:
        """What a piece of a step made in an earlier run that ended within the step; None where that is not kept."""
        found = self._recall(_piece(step, number))
        if found is not None:
            self._pieces.append(_piece(step, number))
        return found

    def keep_piece(self, step: str, number: int, made: Made, rounded: Rounded) -> None:
        """Keep what a piece made: all of it or nothing. `made` has one entry for each result, `rounded` is as the step
        reads it."""
        if self._keep(_piece(step, number), made, rounded):
            self._pieces.append(_piece(step, number))

    def _recall(self, part: str) -> tuple[Made, Rounded] | None:
        found = recall(_part(self._key, part))
        if found is None:
            return None
        made: dict[int, dict[str, Tensor]] = {}
        for name, value in found.items():
            at, _, name_of_part = name.partition("/")
            if name != HEAD:
                made.setdefault(int(at), {})[name_of_part] = value
        return made, json.loads(found[HEAD].numpy().tobytes())

    def _keep(self, part: str, made: Made, rounded: Rounded) -> bool:
        tensors = {f"{at}/{name}": value for at, parts in made.items() for name, value in parts.items()}
        return self._room and keep(_part(self._key, part), {**tensors, HEAD: _as_tensor(rounded)})

    def finish(self, steps: int) -> None:
        """Say that the run is whole, if all of its steps are kept."""
        if len(self._steps) == steps:
            keep(_part(self._key, HEAD), {HEAD: _as_tensor(list(self._steps))})

    def whole(self) -> tuple[Made, Rounded] | None:
        """What all steps made together; None when any of it is not kept."""
        head = recall(_part(self._key, HEAD))
        found = [self.recall(step) for step in json.loads(head[HEAD].numpy().tobytes())] if head is not None else [None]
        self._steps.clear()
        parts = [step for step in found if step is not None]
        if len(parts) < len(found):
            return None
        return {at: tensors for made, _ in parts for at, tensors in made.items()}, [m for _, r in parts for m in r]


def _as_tensor(facts: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)


def _piece(step: str, number: int) -> str:
    return f"{step} [{number}]"


def _part(key: str, name: str) -> str:
    return hashlib.sha256(f"{key} {name}".encode()).hexdigest()
