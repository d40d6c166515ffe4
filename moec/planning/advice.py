"""What to do, in sentences: each follows a rule that has a name, and holds the figures that it rests on.

A rule says nothing where its figure is not known: no bound without a device, no decoding of a model that writes no
text. The rules are those that circulate about dense models and mixtures; the arithmetic decides whether they hold for
this model, this device and this batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moec.planning.advice_memory import fits, holds, state
from moec.planning.advice_rewrites import quantize, rewrite, speculate
from moec.planning.estimate import Estimate
from moec.planning.load import UNIFORM
from moec.planning.question import Advice, Question, gigabytes, listed
from moec.planning.step import bits_computed
from moec.planning.twins import MOST, Rival, changes, first_batch
from moec.shown import count_of, span_of

RULES = (
    "dense or mixture", "bound", "prompt", "turns", "holds", "fits", "state", "quantize", "speculate", "upcycle",
    "carve", "leave", "hot experts", "ranks",
)  # fmt: skip


def advise(found: Estimate) -> tuple[Advice, ...]:
    """What the figures of an estimate advise, in the order in which people ask."""
    asked = Question(found)
    rules: tuple[Callable[[Question], Iterator[Advice]], ...] = (
        dense_or_mixture, bound, prompt, turns, holds, fits, state, quantize, speculate, rewrite, hot_experts, ranks,
    )  # fmt: skip
    return tuple(advice for rule in rules for advice in rule(asked))


def dense_or_mixture(asked: Question) -> Iterator[Advice]:
    """Which of two models is the cheaper one at each batch, and where that turns: by time on the first device that
    holds it, else by the bytes of a token. Both are held against the same limits, so an interval does not matter."""
    for rival in asked.rivals:
        ours, theirs, turned = _cheaper(asked, rival)
        said = [
            f"{who} is cheaper at batch {listed(where)}"
            for who, where in ((f"this {asked.kind}", ours), ("the other", theirs))
            if where
        ]
        batch = (theirs or ours or asked.batches)[0]
        mine, its = (asked.bytes_a_token(shape, batch) for shape in (asked.shape, rival.shape))
        flops = asked.step(rival.shape, batch).flops / asked.step(asked.shape, batch).flops
        computes = "both compute the same" if 0.98 < flops < 1.02 else f"the other computes {flops:.2g} times as much"
        where = f"; it turns at batch {listed(turned)}" if turned else ""
        text = (
            f"beside {rival.words}, {asked.measure}: {', '.join(said) or 'both cost the same'} (at batch {batch:,} a"
            f" token reads {gigabytes(mine)} to {gigabytes(its)}){where}; {computes}"
        )
        figures = {"batch": float(batch), "bytes": mine, "bytes_of_other": its, "flops_ratio": flops}
        figures |= {f"turns_at_{k}": float(at) for k, at in enumerate(turned)}
        yield Advice("dense or mixture", _verdict(asked, rival, ours, theirs), text, figures)


def _cheaper(asked: Question, rival: Rival) -> tuple[list[int], list[int], list[int]]:
    """Batches at which the model is cheaper, at which the other one is, and where that turns; what differs by less than
    a hundredth is alike."""

    def ours(batch: int) -> float:
        return asked.cost(asked.shape, batch) * 0.99

    def theirs(batch: int) -> float:
        return asked.cost(rival.shape, batch)

    own = [b for b in asked.batches if ours(b) / 0.98 < theirs(b)]
    other = [b for b in asked.batches if theirs(b) < ours(b)]
    return own, other, changes(ours, theirs)


def _verdict(asked: Question, rival: Rival, ours: list[int], theirs: list[int]) -> str:
    if bool(ours) == bool(theirs):
        return "depends on the batch" if ours else "alike"
    mine, its = bool(asked.shape.mixtures), bool(rival.shape.mixtures)
    if mine == its:
        return "this one" if ours else "the other"
    return "mixture" if mine == bool(ours) else "dense"


def bound(asked: Question) -> Iterator[Advice]:
    """Which limit holds on a device at each batch, with the bytes that a token takes."""
    for device in asked.devices if asked.shape.states else ():
        if (format := asked.format_on(device)) is None:
            continue
        for kind in ("memory", "compute"):
            batches = [b for b in asked.batches if asked.bound(b, device, format) == kind]
            if not batches:
                continue
            batch = batches[0]
            mine = asked.bytes_a_token(asked.shape, batch, format)
            figures, beside = {"batch": float(batch), "bytes": mine}, ""
            for rival in asked.rivals[-1:]:
                figures["bytes_of_other"] = its = asked.bytes_a_token(rival.shape, batch, format)
                beside = f", the other ({rival.short}) {gigabytes(its)}"
            text = (
                f"decode at batch {listed(batches)} is {kind}-bound on {device.name} in {format.name}: at batch"
                f" {batch:,} this {asked.kind} reads {gigabytes(mine)} a token{beside}"
            )
            yield Advice("bound", f"{kind}-bound", text, figures)


def prompt(asked: Question) -> Iterator[Advice]:
    """Which limit holds for the prompt of one text, where a mixture gains by computing with fewer parameters."""
    for device in asked.devices:
        format = asked.format_on(device)
        time = asked.prompt_time(1, device, format) if format else None
        if format is None or time is None:
            continue
        flops, beside = asked.prompt(asked.shape, 1, format).flops, ""
        figures = {"low_s": time.low, "high_s": time.high, "flops": flops}
        for rival in asked.rivals[-1:]:
            ratio = asked.prompt(rival.shape, 1, format).flops / flops
            figures["flops_ratio"] = ratio
            beside = f", where the other ({rival.short}) computes {ratio:.2g} times as much"
        text = (
            f"a prompt of {asked.context:,} tokens is {time.bound}-bound on {device.name} in {format.name} and takes"
            f" {span_of(time.low, time.high)} s: it computes {count_of(flops, 'FLOP')}{beside}"
        )
        yield Advice("prompt", f"{time.bound}-bound", text, figures)


def turns(asked: Question) -> Iterator[Advice]:
    """From which batch on a device computes longer than it reads; experts get only k/E of the tokens."""
    for device in asked.devices if asked.shape.states else ():
        if (format := asked.format_on(device)) is None:
            continue
        ridge = device.flops(bits_computed(format)) / (device.bandwidth * 1e9)
        found = first_batch(lambda b, d=device, f=format: asked.bound(b, d, f) == "compute")  # type: ignore[misc]
        share = ""
        if asked.shape.mixtures:
            m = asked.shape.mixtures[-1]
            share = f"; an expert sees {m.top_k} of {m.experts} tokens"
        if found is None:
            text = (
                f"decode on {device.name} in {format.name} is memory-bound at every batch up to {MOST:,}: each text"
                f" reads {gigabytes(asked.step(asked.shape, 1, format).state_bytes)} of its own state for a token"
            )
            yield Advice("turns", "never", text, {"ridge_flops_a_byte": ridge})
            continue
        text = f"decode on {device.name} in {format.name} turns from memory- to compute-bound at batch {found:,}{share}"
        yield Advice("turns", f"at batch {found:,}", text, {"batch": float(found), "ridge_flops_a_byte": ridge})


def hot_experts(asked: Question) -> Iterator[Advice]:
    """How uneven a load is that is not uniform, and how many experts fewer a batch then touches."""
    load, mixtures = asked.load, asked.shape.mixtures
    if load.uniform or not mixtures:
        return
    odds = [load.chances(place, m) for place, m in enumerate(mixtures)]
    uneven = [max(layer) * len(layer) / sum(layer) for layer in odds]
    place = max(range(len(mixtures)), key=uneven.__getitem__)
    worst, batch = mixtures[place], asked.batches[-1]
    touched, even = (each.distinct(place, worst, batch) for each in (load, UNIFORM))
    text = (
        f"under {load.name} the busiest expert of {worst.module} takes {uneven[place]:.1f} times the mean, and a batch"
        f" of {batch:,} touches {touched:.1f} of its {worst.experts} experts, {even:.1f} if all were alike: reading"
        f" gains; experts on several devices wait for the one that holds it"
    )
    figures = {"ratio": uneven[place], "batch": float(batch), "experts": touched, "experts_if_even": even}
    yield Advice("hot experts", f"{uneven[place]:.1f} times the mean", text, figures)


def ranks(asked: Question) -> Iterator[Advice]:
    """Experts on several devices beside tensor parallelism, by the bytes that a token sends."""
    for row in asked.found.ranks:
        experts, tensor = row.wire_bytes, row.tensor_parallel_bytes
        least = "expert parallelism" if experts < tensor else "tensor parallelism"
        least = least if abs(experts - tensor) > 0.02 * tensor else "neither"
        text = (
            f"on {row.ranks} devices a token's experts lie on {row.reached:.1f} of them and it sends to the others"
            f" {gigabytes(experts)}, by tensor parallelism {gigabytes(tensor)}: {least} sends less"
        )
        figures = {"ranks": float(row.ranks), "bytes": experts, "tensor_parallel_bytes": tensor}
        yield Advice("ranks", least, text, figures)
