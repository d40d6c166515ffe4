"""Advice about memory: what a mixture holds beside what it uses, what fits, and when the state is most of it."""

from __future__ import annotations

from collections.abc import Iterator

from moec.planning.devices import Device
from moec.planning.formats import FORMATS, Format, with_state
from moec.planning.memory import Memory
from moec.planning.on_cpu import computes
from moec.planning.question import Advice, Question
from moec.shown import count_of, size_of


def holds(asked: Question) -> Iterator[Advice]:
    """Memory is for all parameters of a mixture, computing for the active ones."""
    shape = asked.shape
    if shape.mixtures:
        times = shape.total / shape.active
        weights = asked.memory(shape, 1, asked.format).weights
        text = (
            f"memory is for all {count_of(shape.total)} parameters ({size_of(weights)} in {asked.format.name}),"
            f" computing for {count_of(shape.active)}: it holds {times:.1f} times what a token uses"
        )
        yield Advice("holds", f"{times:.1f} times", text, {"ratio": times, "weights_bytes": weights})


def fits(asked: Question) -> Iterator[Advice]:
    """For each device that does not hold the largest situation: which formats would, else how many devices it takes."""
    batch = asked.batches[-1]
    for device in asked.devices:
        asked_for = {f.name: _on(asked, device, f, batch) for f in asked.formats}
        over = {name: memory for name, memory in asked_for.items() if memory.devices(device) != 1}
        if over:
            yield _not_fitting(asked, device, batch, over)


def _not_fitting(asked: Question, device: Device, batch: int, over: dict[str, Memory]) -> Advice:
    known = {name: with_state(f, asked.found.state) for name, f in FORMATS.items() if computes(device, f)}
    every = {name: _on(asked, device, format, batch) for name, format in known.items()}
    name, memory = next(iter(over.items()))
    head = (
        f"{' and '.join(over)} {'does' if len(over) == 1 else 'do'} not fit on one {device.name} at batch {batch:,}"
        f" with {asked.context:,} tokens ({size_of(memory.total)} in {name} of {size_of(device.memory_bytes)})"
    )
    figures = {"bytes": float(memory.total), "device_bytes": float(device.memory_bytes)}
    fitting = {other: m for other, m in every.items() if m.devices(device) == 1}
    if fitting:
        widest = max(fitting, key=lambda other: fitting[other].weights)
        size = fitting[widest].total
        others = [other for other in fitting if other != widest]
        also = f"; so would {', '.join(others)}" if others else ""
        text = f"{head}; {widest} would ({size_of(size)}){also}"
        return Advice("fits", f"{widest} would fit", text, figures | {"fitting_bytes": float(size)})
    needed = memory.devices(device)
    many = f"{needed} of them hold it in {name}" if needed else "its memory is less than what a runtime takes"
    text = f"{head}, nor does any other format; {many}"
    return Advice("fits", "does not fit", text, figures | {"devices": float(needed)})


def state(asked: Question) -> Iterator[Advice]:
    """When the texts' state takes more than the weights: fewer bits for it, shorter texts, or fewer at once."""
    for format in asked.formats:
        for batch in asked.batches:
            memory = asked.memory(asked.shape, batch, format)
            if memory.state > memory.weights:
                text = (
                    f"in {format.name} the state of {batch:,} texts of {asked.context:,} tokens takes"
                    f" {size_of(memory.state)}, more than the weights ({size_of(memory.weights)}): fewer bits for the"
                    f" state save more than fewer for the weights"
                )
                figures = {"state_bytes": float(memory.state), "weights_bytes": float(memory.weights)}
                yield Advice("state", "state over weights", text, figures)
                break


def _on(asked: Question, device: Device, format: Format, batch: int) -> Memory:
    """What the model takes on a device."""
    return asked.memory(asked.shape, batch, asked.held(format, device), device)
