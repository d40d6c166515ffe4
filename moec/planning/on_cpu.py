"""Times on this machine's processor, from what `moec probe` measured: products, experts and calls are added up.

A processor does one thing after the other, so the time of a step is the sum of its parts. Each part has its own curve
over the rows that go through it: where it is flat reading is what takes time, where it rises multiplying is. Experts
have as many rows as a batch of independent tokens sends them, see `rows_of_an_expert`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from moec.planning.cpu_forms import BITS, FULL, Forms, HeldPacked, forms_of, head_form
from moec.planning.devices import Device, find_device
from moec.planning.formats import FORMATS, Format
from moec.planning.load import UNIFORM, Load
from moec.planning.memory import Memory
from moec.planning.probed import Calls, Experts, Products, Record, between, find_record, grown
from moec.planning.shape import Mixture, Shape, Tensor
from moec.planning.step import Time, decode_step

# the device, and whether activations are rounded to 8 bits (the target's `accuracy=int8`)
NAMES = {"cpu": False, "cpu-int8": True}
_PRODUCTS = ("attention", "dense FFN", "shared experts", "other")
_RUNTIME = 64 * 2**20  # of Python, NumPy and ONNX Runtime; 44 MiB were measured
_GROUPS = 32  # of experts that a batch takes about as often
_SMALL = 1e-9  # a share of the experts that is left out


class ThisMachine(Device, frozen=True, kw_only=True):
    """The processor that this process runs on.

    Attributes:
        record: what was measured of it. rounded: whether activations are rounded to 8 bits.
    """

    record: Record
    rounded: bool

    def held(self, format: Format) -> Format:
        """How an engine here holds weights of a format, matrices, experts and head each in its form: what is no
        integer in 32 bits; what a pass has packed is as wide as its own form."""
        forms, format = self.forms(format), replace(format, packed=HeldPacked(self.rounded))
        if forms is None and format.name in FORMATS:
            return format  # what no engine here computes in has no time either
        if forms is None:  # a recipe: what it leaves is no integer
            return _stored(format, FULL)
        matrices, experts, head = (_stored(FORMATS[format.name], form) for form in (*forms, head_form(forms[0])))
        return replace(matrices, apart=(("routed experts", experts), ("output head", head)), packed=format.packed)

    def holds(self, memory: Memory) -> Memory:
        """The memory of an engine here: no device has a context."""
        return replace(memory, runtime=_RUNTIME)

    def forms(self, format: Format) -> tuple[str, str] | None:
        """The record's forms of matrices and of experts; None for a format that no engine here computes in."""
        found = forms_of(format, self.rounded)
        return found if found and set(found) <= self.record.products.keys() else None

    def times(self, shape: Shape, format: Format) -> bool:
        """Whether times are known: not of formats that no engine here has, of what a pass has packed in such, or of
        states other than keys and values."""
        other = any(s.kind != "keys and values" for s in shape.states)
        return not (shape.unknown or other) and self._forms(shape, format).known(shape, self.record.products)

    def _forms(self, shape: Shape, format: Format) -> Forms:
        return Forms(format, self.rounded, shape.packed)

    def time(
        self, shape: Shape, format: Format, batch: int, context: int, token: bool, load: Load = UNIFORM
    ) -> Time | None:
        """How long a token of each of `batch` texts takes with `context` tokens behind them, or their prompts of so
        many; None for what was not measured, see `times`."""
        if not self.times(shape, format):
            return None
        seconds = seconds_of(self.record, shape, self._forms(shape, format), batch, context, token, load)
        made, machine = self.record.made[:10], self.record.machine
        tokens = batch if token else batch * context
        reading = decode_step(shape, self.held(format), tokens, 1, load).weight_bytes / self.record.bandwidth
        bound: Literal["memory", "compute"] = "memory" if reading > seconds / 2 else "compute"
        origin = f"measured here on {made} ({machine.processor}, {machine.cores} cores)"
        return Time(seconds * self.record.low, seconds * self.record.high, bound, origin)


def held_on(format: Format, device: Device | None) -> Format:
    """A format as engines on a device hold it: this machine unpacks some, others hold what they are given."""
    return device.held(format) if isinstance(device, ThisMachine) else format


def computes(device: Device, format: Format) -> bool:
    """Whether there is an engine on this device for a format; of others than this machine that is taken for granted."""
    return not isinstance(device, ThisMachine) or device.forms(format) is not None


def any_device(name: str) -> Device:
    """The device of this name: this machine's processor, or one that is known on paper.

    Raises:
        MoecError: M201 where this machine has not been measured, M202 with the nearest names.
    """
    plain = name.lower()
    return this_machine(plain) if plain in NAMES else find_device(name)


def this_machine(name: str) -> ThisMachine:
    """The device of one of `NAMES`. Raises M201 where this machine has not been measured, see `find_record`."""
    record = find_record()
    fastest = record.products["fp32"]
    rate = 2 * fastest.rows[-1] / fastest.a_weight[-1] / 1e12
    memory = float(record.machine.gib)
    return ThisMachine(name, memory, record.bandwidth / 1e9, {32: rate}, record=record, rounded=NAMES[name])


def seconds_of(
    record: Record, shape: Shape, forms: Forms, batch: int, context: int, token: bool, load: Load = UNIFORM
) -> float:
    """Seconds of a step; the arguments are those of `ThisMachine.time`."""
    rows = batch if token else batch * context
    total = sum(_products(record.products, forms, group, rows) for group in _modules(shape))
    heads = [t for t in shape.tensors if t.part == "output head" and len(t.shape) == 2]
    total += sum(_products(record.products, forms, [t], batch) for t in heads)
    if shape.mixtures:
        experts = record.experts[forms.of_experts(shape)]
        for layer, mixture in enumerate(shape.mixtures):
            total += mixture_seconds(experts, mixture, rows, () if load.uniform else load.chances(layer, mixture))
    total += rows * _numbers(shape) * record.elementwise
    return total + _call(record.calls, shape, batch, context, token)


def _stored(format: Format, form: str) -> Format:
    bits = BITS[form]
    return replace(format, bits=bits, group=0 if bits == 32 else format.group, scale_bits=32, plain=32, state_bits=32)


def mixture_seconds(costs: Experts, mixture: Mixture, rows: int, chances: Sequence[float] = ()) -> float:
    """Seconds of one mixture that so many tokens go through; with the chance of each expert to be among a token's, all
    alike without them."""
    weights, total = mixture.parameters / mixture.experts, costs.a_block + costs.idle * mixture.experts
    for chance, experts in _alike(chances) or [(mixture.top_k / mixture.experts, mixture.experts)]:
        for count, share in rows_of_an_expert(rows, chance):
            each = costs.an_expert + weights * grown(costs.rows, costs.a_weight, count)
            total += experts * share * each
    numbers = mixture.hidden * costs.a_number + mixture.intermediate * costs.an_inner
    return total + rows * mixture.top_k * numbers


def _alike(chances: Sequence[float]) -> list[tuple[float, int]]:
    """Neighbours in the order of their chances, as if all of them had the mean: 512 curves would take seconds."""
    ordered, each = sorted(chances), -(-len(chances) // _GROUPS)
    groups = [ordered[n : n + each] for n in range(0, len(ordered), each or 1)]
    return [(sum(group) / len(group), len(group)) for group in groups]


def rows_of_an_expert(rows: int, share: float) -> Iterator[tuple[int, float]]:
    """How many rows an expert has, at least one, and how probable that is: each of independent tokens takes it with
    the probability `share` (the binomial distribution)."""
    if share >= 1:
        yield rows, 1.0
        return
    if share <= 0:
        return
    whole, middle, width = math.lgamma(rows + 1), rows * share, 8 * math.sqrt(rows * share * (1 - share)) + 8
    for n in range(max(1, int(middle - width)), min(rows, int(middle + width)) + 1):
        log = whole - math.lgamma(n + 1) - math.lgamma(rows - n + 1) + n * math.log(share)
        probable = math.exp(log + (rows - n) * math.log1p(-share))
        if probable > _SMALL:
            yield n, probable


def _modules(shape: Shape) -> Iterator[list[Tensor]]:
    """The matrices that every token goes through, by the module that holds them."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    for tensor in shape.tensors:
        if tensor.part in _PRODUCTS and len(tensor.shape) == 2:
            owner = tensor.name.rpartition(".")[0].rpartition(".")[0]
            found.setdefault((owner, tensor.part), []).append(tensor)
    yield from found.values()


def _products(costs: Mapping[str, Products], forms: Forms, matrices: list[Tensor], rows: int) -> float:
    """Seconds of the matrices of a module: those that read the same rows in one form are one product, and the last is
    another."""
    joined: dict[tuple[bool, str], list[Tensor]] = {}
    for place, matrix in enumerate(matrices):
        last = place > 0 and place == len(matrices) - 1
        joined.setdefault((last, forms.of(matrix) or FULL), []).append(matrix)
    return sum(
        costs[form].seconds(rows, sum(m.count for m in part), sum(m.shape[0] for m in part) + part[0].shape[1])
        for (_, form), part in joined.items()
    )


def _numbers(shape: Shape) -> float:
    """Numbers of a row that go into operators between products: what products give is cut; gates are activated and
    multiplied; the sum of each block is added and normalized."""
    total = 0.0
    for group in _modules(shape):
        inner = sum(m.shape[0] for m in group[:-1])
        total += inner if group[0].part == "attention" else 2 * inner
    return total + 4 * shape.hidden * (len(shape.states) or shape.layers)


def _call(calls: dict[str, Calls], shape: Shape, batch: int, context: int, token: bool) -> float:
    """Seconds of what is neither products nor experts."""
    costs = calls["token" if token else "prompt" if batch == 1 and shape.states else "prompts"]
    layers, new = len(shape.states) or shape.layers, batch * (1 if token else context)
    normed = sum(t.part == "norm" and ".q_norm." in t.name for t in shape.tensors)
    total = costs.a_call + layers * costs.a_layer + normed * costs.a_norm
    for layer in range(layers):
        state = shape.states[layer] if shape.states else None
        seen = min(context, state.window or context) if state else context
        keys = (state.per_token if state else 2 * shape.heads * shape.head_size) or 1
        heads = shape.heads + keys / 2 / max(shape.head_size, 1)
        pairs = batch * (seen if token else context * seen / 2)
        total += pairs * shape.heads * shape.head_size * between(costs.lengths, costs.a_score, seen)
        total += (
            new * heads * (costs.a_head + (costs.a_normed if normed else 0.0)) + batch * seen * keys * costs.a_number
        )
    return total
