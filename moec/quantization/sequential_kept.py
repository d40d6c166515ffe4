"""What a run of `Sequential` made, kept for the next compile: minutes to hours of work, from the same model, text and
grids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec.files.kept import remove
from moec.program.program import Program
from moec.quantization.grid import Grid
from moec.recognition.weight_roles import Use
from moec.weights.digest import add_tensor
from moec.weights.remembered import fits, keep, key_of, recall

HEAD = "facts"


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


def keep_run(key: str, made: Mapping[int, Mapping[str, Tensor]], facts: Any) -> None:
    """Keep the tensors of each result by its place in the list of what was to be done, then the facts, which are read
    first. All or nothing: parts of a run serve nobody, and what is larger than the weight cache would push out its own
    first parts and everything else."""
    text = json.dumps({"made": sorted(made), "facts": facts}).encode()
    head = {HEAD: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    parts = {**{_part(key, at): tensors for at, tensors in made.items()}, _part(key, HEAD): head}
    if fits(tensor for tensors in parts.values() for tensor in tensors.values()) and not all(
        keep(name, tensors) for name, tensors in parts.items()
    ):
        for name in parts:
            remove(name)


def recall_run(key: str) -> tuple[dict[int, dict[str, Tensor]], Any] | None:
    """What `keep_run` kept; None when any of it is no longer there."""
    head = recall(_part(key, HEAD))
    if head is None:
        return None
    said = json.loads(head[HEAD].numpy().tobytes())
    found: dict[int, dict[str, Tensor]] = {}
    for at in said["made"]:
        tensors = recall(_part(key, at))
        if tensors is None:
            return None
        found[at] = tensors
    return found, said["facts"]


def _part(key: str, name: object) -> str:
    return hashlib.sha256(f"{key} {name}".encode()).hexdigest()
