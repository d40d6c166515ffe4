"""The answer of `moec plan`: counts, memory and time of a model in formats and on devices, before it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moec.errors import MoecError
from moec.planning.costs import memory_on
from moec.planning.dense_equivalent import DenseEquivalent, dense_equivalent
from moec.planning.devices import Device
from moec.planning.formats import Format, find_format, recipe_format, with_state
from moec.planning.load import UNIFORM, Load
from moec.planning.memory import Memory
from moec.planning.on_cpu import any_device, held_on
from moec.planning.pace import decode_time, prompt_time, timed
from moec.planning.parallel import ExpertParallel, expert_parallel
from moec.planning.serving import Asked, Serving, answer, together
from moec.planning.shape import Shape
from moec.planning.step import Step, Time, decode_step, prompt_step
from moec.planning.versus import Beside, beside


@dataclass(frozen=True)
class Situation:
    """One row of the answer.

    Attributes:
        format, device, batch, context: what was asked; no device for what is the same on all.
        memory: bytes.
        devices: how many are needed; None without a device.
        decode, prompt: one token a text with the context behind it; the whole context in one go.
        decode_time, prompt_time: on one device; None without one, where the model does not fit on one, and where they
            are not known.
    """

    format: str
    device: str | None
    batch: int
    context: int
    memory: Memory
    devices: int | None
    decode: Step | None
    prompt: Step
    decode_time: Time | None
    prompt_time: Time | None


@dataclass(frozen=True)
class Estimate:
    """What a model is expected to cost.

    Attributes:
        shape: the model. equivalent: dense models that it is like; None for a dense one.
        situations: by format, device and batch.
        ranks: what its experts send when they lie on so many devices.
        versus: another model, and `beside`: both of them by batch.
        serving: answers about load, links, prices, traffic, drafts, offload and many devices.
        packed: the model as a recipe packs it, by the format that is called like the recipe.
        state: format of keys and values.
        packed_versus: the other model likewise.
    """

    shape: Shape
    equivalent: DenseEquivalent | None
    situations: tuple[Situation, ...]
    ranks: tuple[ExpertParallel, ...] = ()
    versus: Shape | None = None
    beside: tuple[Beside, ...] = ()
    serving: Serving | None = None
    packed: Mapping[str, Shape] = field(default_factory=dict)
    state: str = "bf16"
    packed_versus: Mapping[str, Shape] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: counts by part in place of single tensors."""
        return {
            **_model(self.shape),
            "dense_equivalent": asdict(self.equivalent) if self.equivalent else None,
            "situations": [_plain(s) for s in self.situations],
            "expert_parallel": [asdict(r) for r in self.ranks],
            "versus": _model(self.versus) if self.versus else None,
            "beside": [asdict(b) for b in self.beside],
            **(self.serving.to_dict() if self.serving else {}),
        }


def estimate(
    shape: Shape,
    formats: Sequence[str] = ("bf16",),
    devices: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    context: int = 4096,
    ranks: Sequence[int] = (),
    versus: Shape | None = None,
    packed: Mapping[str, Shape] | None = None,
    asked: Asked | None = None,
    state: str = "bf16",
    packed_versus: Mapping[str, Shape] | None = None,
) -> Estimate:
    """Work out every combination.

    Args:
        shape: the model.
        formats, devices: names, see `moec.planning.formats` and `devices.toml`.
        batches: texts at once.
        context: tokens behind a text when it is continued, and of a prompt.
        ranks: numbers of devices that the experts of a layer are spread over.
        versus: another model, compared in the first of the formats.
        packed: the model as a recipe packs it, by the recipe's name, which stands among the formats.
        asked: questions about serving.
        state: format of keys and values: `bf16`, `fp8` or `int8`.
        packed_versus: the other model as the recipes pack it.

    Raises:
        MoecError: M202 for an unknown name, M201 for a number below 1, a context beyond the model's positions, or ranks
            that do not divide its experts.
    """
    for value, option in [*((b, "--batch") for b in batches), (context, "--context")]:
        if value < 1:
            raise MoecError("M201", f"{value} is below 1", option, "ask for at least 1")
    for model in (shape, *([versus] if versus else [])):
        if model.longest and context > model.longest:
            what = f"the positions of {model.name} end at {model.longest:,} tokens"
            raise MoecError("M201", what, f"--context {context}", f"--context {model.longest}")
    if not formats or not batches:
        raise MoecError("M201", "nothing is asked", "--format, --batch", "name a format and a batch: bf16, 1")
    asked = asked or Asked()
    found: list[Device | None] = [any_device(name) for name in devices] or [None]
    packed = packed or {}
    kinds = [with_state(recipe_format(n) if n in packed else find_format(n), state) for n in formats]
    rows = [
        _situation(packed.get(f.name, shape), f, d, b, context, asked.load)
        for f in kinds
        for d in found
        for b in batches
    ]
    spread = tuple(expert_parallel(shape, n, load=asked.load) for n in ranks)
    others, one = packed_versus or {}, kinds[0].name
    both: tuple[Beside, ...] = ()
    if versus:
        both = beside(packed.get(one, shape), others.get(one, versus), kinds[0], context, load=asked.load)
    shapes = [
        (shape, [f for f in kinds if f.name not in packed], versus),
        *((packed[f.name], [f], others.get(f.name, versus)) for f in kinds if f.name in packed),
    ]
    served = together(answer(s, fs, found, batches, context, spread, v, asked) for s, fs, v in shapes if fs)
    return Estimate(shape, dense_equivalent(shape), tuple(rows), spread, versus, both, served, packed, state, others)


def _situation(
    shape: Shape, format: Format, device: Device | None, batch: int, context: int, load: Load = UNIFORM
) -> Situation:
    memory = memory_on(shape, format, device, batch, context)
    format = held_on(format, device)
    decode = decode_step(shape, format, batch, context, load) if shape.states else None
    prompt = prompt_step(shape, format, batch, context, load)
    needed = memory.devices(device) if device else None
    alone = device if device and needed == 1 and timed(shape, format, device) else None
    return Situation(
        format.name,
        device.name if device else None,
        batch,
        context,
        memory,
        needed,
        decode,
        prompt,
        decode_time(shape, format, alone, batch, context, load) if alone and decode else None,
        prompt_time(shape, format, alone, batch, context, load) if alone else None,
    )


def _model(shape: Shape) -> dict[str, Any]:
    return {
        "model": shape.name,
        "parameters": {
            "total": shape.total,
            "active": shape.active,
            "active_without_input_embedding": shape.active_without_embedding,
            "multi_token_prediction": shape.multi_token,
            "by_part": {part: count for part, count in shape.parts().items() if count},
        },
        "mixtures": [asdict(m) for m in shape.mixtures],
        "states": [asdict(s) for s in shape.states],
        "unknown": list(shape.unknown),
        "notes": list(shape.notes),
    }


def _plain(situation: Situation) -> dict[str, Any]:
    found = asdict(situation)
    found["memory"]["total"] = situation.memory.total
    for name in ("decode", "prompt"):
        step = getattr(situation, name)
        if step is not None:
            found[name]["bytes"] = step.bytes
    return found
