"""The rows of `quality.py`: pipelines and their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# what else there is in the model that is trained here; routers and norms stay in any case
ALONE = "attention=16, lm_head=16"


@dataclass(frozen=True)
class Row:
    """A name and the passes that make it; `data` says that calibration windows, and so the seed, decide."""

    name: str
    pipeline: str
    data: bool = False


def _quantize(options: str, **passes: bool) -> str:
    return (
        f"quantize({options}, group=GROUP"
        + (", method=gptq, floor=0)" if passes.get("gptq") else ")")
        + (", calibrate-router" if passes.get("router") else "")
    )


def _fitted(name: str, options: str) -> Iterator[Row]:
    yield Row(name, _quantize(options, gptq=True), data=True)
    yield Row(f"{name} + router", _quantize(options, gptq=True, router=True), data=True)


def _widths(name: str, rest: str) -> Iterator[Row]:
    """Each width by each method; `rest` has a place for what everything but the experts has."""
    options = {bits: f"experts={bits}, {rest.format(max(bits, 4))}" for bits in (8, 4, 3, 2)}
    for bits in (8, 4, 3, 2):
        yield Row(f"{name}{bits} bits RTN", _quantize(options[bits]))
    for bits in (4, 3, 2):
        yield from _fitted(f"{name}{bits} bits GPTQ", options[bits])


def _mixes(name: str, rest: str, others: tuple[str, ...]) -> Iterator[Row]:
    """The same mean of bits, shared out by what an expert's error does to the loss, to its block's output, or by how
    many tokens it gets."""
    case, options = f"{name}3.0 bits of 2 and 4 by {{}}", "budget_bits=3.0, sensitivity={}, " + rest
    yield from _fitted(case.format("fisher"), options.format("fisher"))
    yield from (Row(case.format(how), _quantize(options.format(how), gptq=True), data=True) for how in others)


ROWS = [  # those that decide most first: all of them with one seed, then with the next
    *_mixes("experts alone: ", f"bits=4, {ALONE}", ("error", "frequency")),
    *_widths("experts alone: ", f"bits={{}}, {ALONE}"),
    *_widths("", "bits={}"),
    *_mixes("", "bits=4", ("frequency",)),
    *(
        Row(f"{share}, {score}", f"prune-experts(keep={keep}, score={score})", data=True)
        for keep, share in ((0.75, "3/4 of the experts"), (0.5, "1/2 of the experts"))
        for score in ("reap", "activation", "frequency", "random")
    ),
    *(Row(f"PESF {alpha}", f"skip-experts(alpha={alpha})") for alpha in (0.3, 0.7)),
    *(
        Row(f"{bits} bits RTN + router", _quantize(f"experts={bits}, bits=4", router=True), data=True)
        for bits in (4, 2)
    ),
    *(
        Row(f"experts alone: {bits} bits HQQ", _quantize(f"experts={bits}, bits={max(bits, 4)}, {ALONE}, method=hqq"))
        for bits in (4, 3, 2)
    ),
    Row("2 bits GPTQ, zero points", _quantize("bits=4, experts=2, symmetric=False", gptq=True), data=True),
]
BUILT = ("8 bits RTN", "4 bits RTN", "2 bits RTN", "3.0 bits of 2 and 4 by fisher")
