"""Why an engine may differ where nothing is wrong with it: an expert, or a block, takes the tokens with the largest
scores, and tokens that are equal have equal ones. Each implementation of a top-k takes the one that it likes."""

from __future__ import annotations

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


def tied_tokens(program: Program, source: Source) -> str:
    """What to say of a choice among tokens that hangs on a tie, for one of the inputs of a proof; empty where there is
    none."""
    if not any(map(_chooses_tokens, program.nodes(_TOP))):
        return ""
    found: list[str] = []

    def watch(node: fx.Node, _value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _chooses_tokens(node):
            return
        told = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
        if _ties(told["self"], int(told["k"]), int(told.get("dim", -1)), bool(told.get("largest", True))):
            found.append(node.name)

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
    told = dict(zip(_PARAMETERS, node.args, strict=False)) | node.kwargs
    scores: Any = told["self"]
    dim: Any = told.get("dim", -1)
    return not isinstance(scores.meta["val"].shape[dim], int)


def _ties(scores: Tensor, k: int, dim: int, largest: bool) -> bool:
    """Whether the last score that is taken and the first that is not are equal, in some row."""
    ranked = scores.sort(dim, descending=largest).values
    if not 0 < k < ranked.shape[dim]:
        return False
    return bool((ranked.select(dim, k - 1) == ranked.select(dim, k)).any())
