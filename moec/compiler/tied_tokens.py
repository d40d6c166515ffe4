"""Why an engine may differ where nothing is wrong with it: an expert, or a block, takes the tokens with the largest
scores, and tokens that are equal have equal ones. Each implementation of a top-k takes the one that it likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.trace import trace
from moec.frontend.source import Source
from moec.program.program import Program
from moec.proof.chosen_keys import chooses_keys
from moec.proof.sizes import verification_sizes

_TOP = torch.ops.aten.topk.default
_PARAMETERS = ("self", "k", "dim", "largest")
_ROUNDING = 1e-5  # of the largest number of a vector


def tied_tokens(program: Program, source: Source) -> str:
    """What to say of a choice among tokens that hangs on a tie, for one of the inputs of a proof; empty where there is
    none."""
    scored = {node.name: _scored(node) for node in program.nodes(_TOP) if _chooses_tokens(node)}
    if not scored:
        return ""
    found: list[str] = []
    held: dict[str, Tensor] = {}

    def watch(node: fx.Node, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(node is tokens for tokens in scored.values()):
            held[node.name] = value
        tokens = scored.get(node.name)
        if tokens is None:
            return
        told = _told(args, kwargs)
        for place in _ties(told["self"], int(told["k"]), int(told.get("dim", -1)), bool(told.get("largest", True))):
            if _equal(node, tokens, held[tokens.name], *place):
                found.append(node.name)
                return

    for sizes in verification_sizes(source.inputs, source.scale):
        trace(program, source.sample(sizes), watch)
        if found:
            what = (
                f"the top-k {found[0]} chooses among tokens, and some that are equal have equal scores at the edge of"
            )
            return f"{what} the choice: which of them is taken is nobody's choice"
    return ""


def _chooses_tokens(node: fx.Node) -> bool:
    """Whether a top-k ranks along a size of the input: no token does so for its experts."""
    if node.target is not _TOP or chooses_keys(node):
        return False
    scores, dim = _ranked(node)
    return not isinstance(scores.meta["val"].shape[dim], int)


def _scored(node: fx.Node) -> fx.Node | None:
    """The nearest node before a top-k with a vector for each of the tokens that it ranks, `[..., tokens, width]`."""
    scores, dim = _ranked(node)
    length, seen = str(scores.meta["val"].shape[dim]), [scores]
    for one in seen:  # which grows
        value = one.meta.get("val")
        shape: Sequence[Any] = value.shape if isinstance(value, Tensor) and value.is_floating_point() else ()
        wide = len(shape) > 1 and isinstance(shape[-1], int) and shape[-1] > 1
        if one.op == "call_function" and wide and str(shape[-2]) == length:
            return one
        seen += [each for each in one.all_input_nodes if each not in seen]
    return None


def _ranked(node: fx.Node) -> tuple[fx.Node, int]:
    """The scores of a top-k, and the dimension that it ranks, from the front."""
    told = _told(node.args, node.kwargs)
    return told["self"], int(told.get("dim", -1)) % told["self"].meta["val"].dim()


def _told(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a top-k by name."""
    return {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}


def _equal(node: fx.Node, tokens: fx.Node, value: Tensor, row: dict[int, int], first: int, second: int) -> bool:
    """Whether two tokens are the same vector but for rounding, of the text that the row of scores is of."""
    scores, _ = _ranked(node)
    rows = {str(scores.meta["val"].shape[dim]): index for dim, index in row.items()}
    for dim, size in enumerate(tokens.meta["val"].shape[:-2]):
        if str(size) not in rows:
            return False
        value = value.narrow(dim, rows[str(size)], 1)
    one, other = value.select(-2, first), value.select(-2, second)
    return bool((one - other).abs().max() <= _ROUNDING * one.abs().max())


def _ties(scores: Tensor, k: int, dim: int, largest: bool) -> list[tuple[dict[int, int], int, int]]:
    """The rows, as indexes by dimension, in which the last score that is taken and the first that is not are equal, and
    the places of these two. Not where that score is the lowest, or not finite: that is how padding is left out."""
    ranked, places = scores.sort(dim=dim, descending=largest, stable=True)
    if not 0 < k < ranked.shape[dim]:
        return []
    last, next_one = ranked.select(dim, k - 1), ranked.select(dim, k)
    tied = (last == next_one) & last.isfinite() & (last > scores.amin(dim))
    others = [other for other in range(scores.dim()) if other != dim % scores.dim()]
    taken, left = places.select(dim, k - 1), places.select(dim, k)
    return [
        (dict(zip(others, row, strict=True)), int(taken[tuple(row)]), int(left[tuple(row)]))
        for row in tied.nonzero().tolist()
    ]
