"""Experts that no input reaches are compared directly: the engine's block and the program's, on rows that the block's
router sends to them; and with the untouched model's own experts, where these are a module that can be called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from moec.dialect import route_reference
from moec.execution.choices import routed
from moec.execution.engine import Engine
from moec.execution.streaming import moe_output
from moec.execution.trace import trace
from moec.program.moe_call import MOE, MoeCall
from moec.program.program import Program
from moec.program.signature import Sample, converted
from moec.proof.chosen_experts import hanging
from moec.proof.compare import Tolerance
from moec.proof.coverage import Coverage, ExpertLoad, strong
from moec.proof.decided_tokens import NOISE, is_half

_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)  # of a row, against those of a text
_EACH = 4  # rows an expert: no two alike


@dataclass(frozen=True)
class Seen:
    """A block as it was run: what went in `[..., H]`, what came out, and the call with its values."""

    x: Tensor
    y: Tensor
    call: MoeCall


def drive(
    program: Program,
    engine: Engine,
    samples: Sequence[Sample],
    coverage: Coverage,
    tolerance: Tolerance,
    precision: torch.dtype,
    seed: int = 0,
    reference: Engine | None = None,
) -> Coverage:
    """Compare the experts that a coverage misses, block by block, where the engine can run a part of itself.

    Args:
        program: what the engine was built from. engine: one with a method `part`; of others nothing is driven.
        samples: inputs that both run on.
        tolerance: how far the block's outputs may be apart, as max |d|/std of a row.
        precision: the dtype that the engine computes in.
        reference: the untouched model, which has to agree too where its experts are a module that takes tokens, ids
            and weights (`top_k_index`, `top_k_weights`).

    Returns:
        The coverage, with the experts that agreed as `driven`, and those that differed as `wrong`. What another engine
        was `driven` on before has to agree here as well.
    """
    part = getattr(engine, "part", None)
    if part is None or not samples:
        return replace(coverage, loads=tuple(replace(load, driven=()) for load in coverage.loads))
    sample = converted(engine.inputs, samples[0])
    blocks = _blocks(program, sample)
    loads = []
    for load in coverage.loads:
        seen = blocks.get(load.node) if load.missed or load.driven else None
        run = part(sample, seen.x, seen.y, tolerance.deviation) if seen else None
        load = replace(load, driven=())
        own = _own_experts(reference, load.module)
        loads.append(_driven(load, seen, run, tolerance, precision, seed, own) if seen and run else load)
    return replace(coverage, loads=tuple(loads))


def _blocks(program: Program, sample: Sample) -> dict[str, Seen]:
    """The blocks whose router is known, by the node's name."""
    found: dict[str, Seen] = {}

    def watch(node: fx.Node, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if node.target is MOE:
            call = MoeCall.evaluated(node.target, args, kwargs)
            found[node.name] = Seen(call.x, value, call)

    trace(program, sample, watch)
    return found


def _own_experts(reference: Engine | None, name: str) -> Any:
    """The untouched model's experts in a block; None where it has no such module."""
    module = getattr(reference, "module", None)
    found = dict(module.named_modules()).get(name) if isinstance(module, nn.Module) else None
    names = inspect.signature(found.forward).parameters if found is not None else ()
    return found if {"top_k_index", "top_k_weights"} <= set(names) else None


def _driven(
    load: ExpertLoad, seen: Seen, run: Any, tolerance: Tolerance, precision: torch.dtype, seed: int, own: Any = None
) -> ExpertLoad:
    rows = {e: found for e in load.missed if (found := rows_to(seen, e, precision, seed)) is not None}
    right, wrong = list[int](), list[int]()
    for e, given in rows.items():
        x = given[torch.arange(seen.x.numel() // seen.x.shape[-1]) % len(given)].to(seen.x.dtype).view(seen.x.shape)
        call = seen.call.given(x=x)
        with torch.inference_mode():
            want = moe_output(call)
        got = run(x)
        if is_half(precision) and not (want.isfinite().all() and got.isfinite().all()):
            continue  # rows that large are beyond half precision
        same = _agree(want, got, tolerance) and (own is None or _agree(_untouched(own, call), got, tolerance))
        (right if same else wrong).append(e)
    return replace(load, driven=tuple(right), wrong=(*load.wrong, *wrong))


def _untouched(own: nn.Module, call: MoeCall) -> Tensor:
    """What the untouched model's experts make of the same rows."""
    assert call.routing is not None
    weights, ids = route_reference(*routed(call, call.routing))
    dtype = next((p.dtype for p in own.parameters()), torch.float32)
    x = call.x.to(dtype)
    with torch.inference_mode():
        y: Tensor = own(
            x.flatten(0, -2), top_k_index=ids.flatten(0, -2), top_k_weights=weights.flatten(0, -2).to(dtype)
        )
    return y.view(x.shape)


def _agree(want: Tensor, got: Tensor, tolerance: Tolerance) -> bool:
    want, got = want.double().flatten(0, -2), got.double().flatten(0, -2)
    apart = (got - want).abs().amax(-1)
    return bool((apart <= tolerance.deviation * want.std(-1, correction=0)).all())


def rows_to(seen: Seen, expert: int, precision: torch.dtype, seed: int = 0) -> Tensor | None:
    """Rows `[N, H]`, no two alike, that a block's router sends to an expert with a weight that counts; the smallest
    that were found. None where no row goes there, as far as was tried."""
    router = seen.call.router
    weight = (router if isinstance(router, Tensor) else router.load()).float()
    size = seen.x.float().square().mean().sqrt() * seen.x.shape[-1] ** 0.5
    for direction in _directions(weight, expert, seed):
        for scale in _SCALES:
            rows = scale * size * direction
            if bool(_chosen(seen, rows, expert, precision).all()):
                return rows
    return None


def _directions(weight: Tensor, expert: int, seed: int) -> Iterator[Tensor]:
    """Unit rows `[_EACH, H]` on which an expert's logit is larger than the others': exactly where there are no more
    experts than dimensions, then along its own weight; each with noise that the router hardly sees."""
    generator = torch.Generator().manual_seed(seed)
    solved = torch.linalg.pinv(weight)[:, expert]
    own = weight[expert] - weight.mean(0)
    noise = torch.randn(_EACH, weight.shape[1], generator=generator)
    noise = noise - noise @ weight.T @ torch.linalg.pinv(weight).T  # what no logit hangs on
    for direction in (solved, own):
        unit = direction / direction.norm().clamp_min(1e-12)
        for share in (1.0, 0.2):
            rows = unit + share * noise / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            rows = rows + 0.05 * torch.randn(rows.shape, generator=generator) / rows.shape[-1] ** 0.5
            yield rows / rows.norm(dim=-1, keepdim=True)


def _chosen(seen: Seen, rows: Tensor, expert: int, precision: torch.dtype) -> Tensor:
    """Which rows go to an expert, with a weight that counts, and whatever rounding does: bool `[N]`."""
    call = seen.call.given(x=rows)
    assert call.routing is not None
    choice = routed(call, call.routing)
    weights, ids = route_reference(*choice)
    counts = strong(weights.abs()) & (weights.abs() >= 1e-2) & (ids == expert)
    return counts.any(-1) & ~hanging(*choice, NOISE[precision if is_half(precision) else torch.float32])
