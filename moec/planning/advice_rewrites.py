"""Advice about what could be done to a model: fewer bits, a draft model, upcycling, carving, or leaving it."""

from __future__ import annotations

from collections.abc import Iterator

from moec.planning.drafting import accepted
from moec.planning.formats import find_format, stored_bytes, with_state
from moec.planning.on_cpu import computes, held_on
from moec.planning.question import Advice, Question, gigabytes
from moec.planning.shape import Part
from moec.planning.touched import distinct
from moec.shown import count_of

DRAFT = 3  # tokens that a draft model proposes
YIELD = accepted(0.7, DRAFT)  # tokens of a step when each proposal is accepted with 0.7: 2.53
COPIES, CHOSEN = 8, 2  # the usual upcycle: 8 copies, 2 a token (Komatsuzaki et al. 2022, arXiv 2212.05055)
CARVED, KEPT = 8, 6  # the usual carve: 6 of 8 parts a token (CMoE, arXiv 2502.04416)
WORTH = 0.9  # a carve is worth its loss of quality where it reads less than this share


def quantize(asked: Question) -> Iterator[Advice]:
    """What 4 bits bring: at small batches time goes with the bytes of the weights."""
    shape, small = asked.shape, with_state(find_format("int4"), asked.found.state)
    if asked.fitting and not computes(asked.fitting[0], small):
        return
    small = held_on(small, asked.fitting[0] if asked.fitting else None)
    if asked.format.bits <= small.bits or not shape.states:
        return
    batch = asked.batches[0]
    before, after = (asked.bytes_a_token(shape, batch, f) for f in (asked.format, small))
    if before < after * 1.05:  # packed already
        return
    experts = shape.parts()["routed experts"] / shape.total
    which = f"; {experts:.0%} of its parameters are routed experts" if experts else ""
    text = (
        f"{small.name} makes a token read {gigabytes(after)} in place of {gigabytes(before)} in {asked.format.name} at"
        f" batch {batch:,}, {before / after:.1f} times less{which}"
    )
    figures = {"batch": batch, "bytes": before, "bytes_quantized": after, "ratio": before / after}
    yield Advice("quantize", f"{before / after:.1f} times less", text, figures)


def speculate(asked: Question) -> Iterator[Advice]:
    """A draft of n tokens is checked in one step of n + 1 tokens a text, which touches more experts than one token
    does. It pays where a step yields more tokens than it costs times."""
    for batch in sorted({asked.batches[0], asked.batches[-1]}) if asked.shape.states else ():
        one, many = (asked.step(asked.shape, batch, rows=rows) for rows in (1, DRAFT + 1))
        times, takes = many.bytes / one.bytes, "reads {:.2f} times as much as one token"
        if asked.fitting:
            device, format = asked.fitting
            timed = [asked.time(asked.shape, batch, device, format, rows) for rows in (1, DRAFT + 1)]
            if timed[0] and timed[1]:
                times = timed[1].low / timed[0].low
                takes = f"takes {{:.2f}} times as long as one token on {device.name}"
        gain = YIELD / times
        experts = f" ({many.experts:.1f} experts a layer in place of {one.experts:.1f})" if one.experts else ""
        text = (
            f"checking a draft of {DRAFT} tokens at batch {batch:,} {takes.format(times)}{experts}; where 7 of 10"
            f" proposals are accepted a step yields {YIELD:.2f} tokens, {gain:.2f} times as many, less the draft's time"
        )
        figures = {"batch": float(batch), "ratio": times, "tokens_a_step": YIELD, "gain": gain}
        yield Advice("speculate", _pays(gain), text, figures)


def _pays(gain: float) -> str:
    return "pays" if gain > 1.1 else "does not pay" if gain < 0.9 else "hardly pays"


def rewrite(asked: Question) -> Iterator[Advice]:
    """For a dense model: what copies of its networks would hold and compute, and what parts of them would read; for a
    mixture what fewer experts would bring."""
    if not asked.shape.states:
        return
    if asked.shape.mixtures:
        yield _leave(asked)
    elif asked.shape.parts()["dense FFN"]:
        yield _upcycle(asked)
        yield _carve(asked)


def _leave(asked: Question) -> Advice:
    m = asked.shape.mixtures[-1]
    stored = _stored(asked)
    weights, half = sum(stored.values()), stored["routed experts"] / 2
    text = (
        f"it is a mixture already ({m.experts} experts, {m.top_k} a token): leave it; half of its experts less would"
        f" take {gigabytes(weights - half)} in place of {gigabytes(weights)} and make a token at batch 1 read no less,"
        f" at a loss of quality"
    )
    return Advice("leave", "leave it", text, {"weights_bytes": weights, "weights_bytes_of_half": weights - half})


def _upcycle(asked: Question) -> Advice:
    shape, networks = asked.shape, asked.shape.parts()["dense FFN"]
    routers = shape.layers * shape.hidden * COPIES
    total = shape.total + (COPIES - 1) * networks + routers
    active = shape.total + (CHOSEN - 1) * networks + routers
    weights = sum(_stored(asked).values())
    held = weights + (COPIES - 1) * _stored(asked)["dense FFN"]
    text = (
        f"upcycle(experts={COPIES}, top_k={CHOSEN}) makes {count_of(shape.total)} parameters {count_of(total)}"
        f" ({gigabytes(held)} of weights in place of {gigabytes(weights)}), {count_of(active)} of them active; it"
        " computes the same until it is trained, so it pays with training only"
    )
    return Advice("upcycle", "with training only", text, {"total": total, "active": active, "weights_bytes": held})


def _carve(asked: Question) -> Advice:
    networks = _stored(asked)["dense FFN"]
    batch = asked.batches[0]
    shares = []
    for texts in (batch, asked.batches[-1]):
        whole = asked.step(asked.shape, texts).bytes
        shares.append((whole - networks * (1 - distinct(CARVED, KEPT, texts) / CARVED)) / whole)
    verdict = "for small batches" if shares[0] < WORTH else "leave it"
    last = f" and {shares[1]:.0%} at batch {asked.batches[-1]:,}" if len(asked.batches) > 1 else ""
    text = (
        f"carving its networks into {CARVED} experts and using {KEPT} would keep all bytes in memory and read"
        f" {shares[0]:.0%} of them at batch {batch:,}{last}, at a loss of quality: {_said(verdict)}"
    )
    return Advice("carve", verdict, text, {"batch": batch, "share": shares[0], "share_at_most": shares[1]})


def _said(verdict: str) -> str:
    return "leave it dense" if verdict == "leave it" else "it saves reading and computing, never memory"


def _stored(asked: Question) -> dict[Part, int]:
    """Bytes of the model by part."""
    return stored_bytes(asked.packed(asked.shape, asked.format).tensors, asked.format)
