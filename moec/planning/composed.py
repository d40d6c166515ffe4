"""A step's time as the sum of its kernels' measured times."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from moec.planning.devices import Device
from moec.planning.measured import Kind, Tables
from moec.planning.rooflines import ACTIVATION_BYTES, LAUNCH
from moec.planning.shape import Mixture, State, Tensor
from moec.planning.step import BANDWIDTH_SHARE, Step, Time, pairs, time_of
from moec.planning.tensor import HOP, exchanged, part_of, sent_bytes
from moec.planning.work import Work

# how far nine of ten held-out times of each kind lie from what is interpolated: benchmarks/plan_tables.py
WITHIN = {"matrices": 0.18, "experts": 0.23, "attention": 0.20, "exchanges": 0.20}
_PASSES, _LAUNCHES = 10, (3, 8)  # of a layer beside products and attention: readings of its tokens, kernels
_NO_PRODUCT = ("input embedding", "norm", "routed experts", "vision and audio")  # of a token of text, one by one
STATE_BITS = 16  # of keys and values when attention was measured
_LATENT = 576  # numbers a token of the latent caches that were measured, DeepSeek-V3's
_TOGETHER = re.compile(r"\.(q_proj|k_proj|v_proj|gate_proj|up_proj|w1|w3)\.weight$")
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gu", "up_proj": "gu", "w1": "gu", "w3": "gu"}


def composed(work: Work, device: Device, tables: Sequence[Tables], ranks: int = 1) -> Time | None:
    """The time of a forward on one device, or on several that split every matrix, over the intervals of the two
    frameworks that are fastest at it.

    Each framework's kernels are summed: products, experts, attention. What they lack (norms, rotations, activations)
    is a rule of thumb. A server's own work between steps is not in it.

    Returns:
        None where no framework's tables hold the kernels that take most of the time.
    """
    sums = [found for found in (_of(work, device, each, ranks) for each in tables) if found is not None]
    if not sums:
        return None
    best = sorted(sums, key=lambda each: each.low)[:2]
    origin = f"measured by others, kernel by kernel: {', '.join(sorted(each.origin for each in best))}"
    if work.format.state_bits != STATE_BITS and not work.prompt:
        origin += f"; attention scaled by the roofline from {STATE_BITS} bits of state to {work.format.state_bits:g}"
    return Time(best[0].low, max(each.high for each in best), best[0].bound, origin, best[0].parts)


def _of(whole: Work, device: Device, tables: Tables, ranks: int) -> Time | None:
    work = part_of(whole, ranks)
    needed = tables.table("experts" if work.shape.mixtures else "matrices")
    if needed is None:
        return None
    parts = [part for part in (*_parts(work, device, tables), *_exchanges(whole, device, tables, ranks)) if part[2] > 0]
    sums = {name: sum(low + high for n, low, high in parts if n == name) / 2 for name, _, _ in parts}
    bound = time_of(work.step, device, work.format).bound
    low, high = sum(part[1] for part in parts), sum(part[2] for part in parts)
    return Time(low, high, bound, needed.origin, tuple(sums.items()))


def _parts(work: Work, device: Device, tables: Tables) -> Iterator[tuple[str, float, float]]:
    """What takes time, with seconds at least and at most."""
    yield from _products(work, device, tables)
    yield from _experts(work, tables)
    for state in Counter(work.shape.states).items():
        yield from _attention(work, device, tables, *state)
    moved = _PASSES * work.shape.layers * work.tokens * work.shape.hidden * ACTIVATION_BYTES
    low, high = (
        moved / (device.bandwidth * 1e9 * BANDWIDTH_SHARE[1 - k]) + n * work.shape.layers * LAUNCH
        for k, n in enumerate(_LAUNCHES)
    )
    yield "rest", low, high


def _exchanges(work: Work, device: Device, tables: Tables, ranks: int) -> Iterator[tuple[str, float, float]]:
    """All-reduces of a forward that is split."""
    if ranks == 1:
        return
    table, (count, numbers) = tables.table("exchanges"), exchanged(work)
    if table is not None:
        yield _measured("exchanges", count * float(table.at(np.array([[ranks, numbers]], float))[0]))
    else:
        moved = sent_bytes(work, ranks) / (device.link * 1e9)
        yield "exchanges", moved + count * HOP[0], moved + count * HOP[1]


def _products(work: Work, device: Device, tables: Tables) -> Iterator[tuple[str, float, float]]:
    latent = not work.prompt and any(s.per_token == _LATENT for s in work.shape.states)
    sizes = products(t for t in work.shape.tensors if not (latent and t.name.endswith("kv_b_proj.weight")))
    table, texts = tables.table("matrices"), work.texts * work.rows
    asked = np.array([[texts if head else work.tokens, n, k] for n, k, head in sizes], float)
    times = np.array(list(sizes.values()), float)
    if table is not None:
        yield _measured("matrices", float(times @ table.at(asked)))
        return
    read = sum(c * work.format.matrix_bytes((n, k)) for (n, k, _), c in sizes.items())
    step = Step(work.tokens, 0, read, 0, float(2 * times @ asked.prod(axis=1)))
    found = time_of(step, device, work.format)
    yield "matrices", found.low, found.high


def _experts(work: Work, tables: Tables) -> Iterator[tuple[str, float, float]]:
    """The ratio to the roofline is that of balanced tokens; the roofline is that of the experts that are touched."""
    kinds = Counter(
        (m.hidden, m.intermediate, m.top_k, m.experts, work.load.distinct(place, m, work.tokens), _matrices_of(m))
        for place, m in enumerate(work.shape.mixtures)
    )
    table = tables.table("experts")
    if kinds and table is not None:
        asked = np.array([(work.tokens, *kind) for kind in kinds], float)
        yield _measured("experts", float(np.array(list(kinds.values()), float) @ table.at(asked)))


def _matrices_of(mixture: Mixture) -> int:
    """Matrices of an expert: three with a gate, else two."""
    return min(3, max(2, round(mixture.parameters / (mixture.experts * mixture.hidden * mixture.intermediate))))


def _attention(
    work: Work, device: Device, tables: Tables, state: State, layers: int
) -> Iterator[tuple[str, float, float]]:
    if state.per_token == _LATENT:
        found = _latent(work, tables)
    else:
        found = _keys_and_values(work, tables, state) if state.per_token else None
    if found is not None:
        yield _measured("attention", layers * found * _narrower(work, device, state))
        return
    rough = time_of(_attended(work, state, layers, work.format.state_bits), device, work.format)
    yield "attention", rough.low, rough.high


def _attended(work: Work, state: State, layers: int, bits: float) -> Step:
    """What attention reads and computes when the state has so many bits a number."""
    read = 0.0 if work.prompt else work.texts * state.bytes(work.context, bits)
    seen = work.texts * (_pairs_of(work, state) if work.prompt else work.rows * state.rows(work.context))
    size = _LATENT if state.per_token == _LATENT and not work.prompt else work.shape.head_size
    computed = 4 * seen * work.shape.heads * size if state.per_token else 0.0
    return Step(work.tokens, 0, 0, layers * read, layers * computed)


def _narrower(work: Work, device: Device, state: State) -> float:
    """What a state of fewer bits takes of the time that was measured with 16, by the roofline."""
    if work.prompt or work.format.state_bits == STATE_BITS:
        return 1.0
    asked, measured = (
        max(step.bytes / (device.bandwidth * 1e9), step.flops / device.flops(16)) + LAUNCH
        for step in (_attended(work, state, 1, bits) for bits in (work.format.state_bits, STATE_BITS))
    )
    return asked / measured


def _pairs_of(work: Work, state: State) -> float:
    """Pairs of tokens that a prompt's attention looks at."""
    return pairs(work.context, state.window) / state.every


def _keys_and_values(work: Work, tables: Tables, state: State) -> float | None:
    table = tables.table("attention of a prompt" if work.prompt else "attention")
    pair = state.per_token / (2 * work.shape.head_size) if work.shape.head_size else 0
    if table is None or not work.shape.heads or pair < 1:
        return None
    tokens = work.context if work.prompt else max(1, state.rows(work.context))
    heads = work.shape.heads * work.rows  # the rows of a draft look at the same keys, as heads that share them do
    sizes = np.array([[work.texts, tokens, heads, pair, work.shape.head_size]], float)
    share = _pairs_of(work, state) / pairs(tokens, 0) if work.prompt else 1.0
    return float(table.at(sizes)[0]) * share


def _latent(work: Work, tables: Tables) -> float | None:
    names: tuple[Kind, ...] = ("latent of a prompt",) if work.prompt else ("latent",)
    table, texts = tables.table(names[0]), work.texts * work.rows
    if table is None:
        return None
    found = float(table.at(np.array([[work.texts, work.context, work.shape.heads * work.rows]], float))[0])
    if work.prompt:
        return found
    both = [tables.table(name) for name in ("absorbed keys", "absorbed values")]
    sizes = np.array([[texts, work.shape.heads]], float)
    return None if None in both else found + sum(float(t.at(sizes)[0]) for t in both if t is not None)


def products(tensors: Iterator[Tensor]) -> Counter[tuple[int, int, bool]]:
    """How often each product `[m, k] x [k, n]` is done, by n, k and whether it is the output head's; those of one input
    that every engine does as one (queries, keys and values; gate and up) are one."""
    together: dict[tuple[str, int, bool], int] = {}
    for tensor in tensors:
        if len(tensor.shape) != 2 or tensor.part in _NO_PRODUCT:
            continue
        found = _TOGETHER.search(tensor.name)
        name = f"{tensor.name[: found.start()]}.{_FUSED[found[1]]}" if found else tensor.name
        key = (name, tensor.shape[1], tensor.part == "output head")
        together[key] = together.get(key, 0) + tensor.shape[0]
    return Counter((n, k, head) for (_, k, head), n in together.items())


def _measured(name: str, seconds: float) -> tuple[str, float, float]:
    return name, seconds / (1 + WITHIN[name]), seconds * (1 + WITHIN[name])
