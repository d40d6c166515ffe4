"""How far the attention of a program looks back: read off its masks, computed for padding everywhere.

A mask is a graph of its own: positions, comparisons, padding, as transformers wrote them. A kernel that makes no use of
a mask needs one number of it instead, the window. What that number and the padding determine has to be the program's
mask at every place, at lengths on both sides of the window; else the mask is something else, and is not replaced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from moec.backends.onnxruntime.attention.token_order import Part, masks, why_order_matters
from moec.program.program import Program
from moec.targets.target import Target

LONGEST = 2**18  # tokens: a window as long as that is none
WIDE = 64  # tokens: prompts longer than a wider window are not looked at, texts that go on past it are
Look = Callable[[Tensor, int], Tensor]


def compact_windows(program: Program, target: Target) -> list[int | None]:
    """The windows of a program's attention, where the target has kernels for a cache without padding and the program
    can be given one; else none."""
    half = target.device == "cuda" and target.options.get("precision", "fp32") != "fp32"
    return windows_of(program) if half and not why_order_matters(program) else []


def windows_of(program: Program) -> list[int | None]:
    """For each attention of a program, in order: how many tokens a token sees, itself among them, 0 for all before it;
    None where its mask does not say that of every batch."""
    part, found = Part(program), dict[fx.Node, "int | None"]()
    windows = []
    for node in program.nodes(torch.ops.moec.attention.default):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("mask")
        if isinstance(mask, fx.Node) and mask not in found and node.kwargs.get("causal"):
            found[mask] = _window(lambda given, new, name=mask.name: part([name], given, new)[0])  # type: ignore[misc]
        windows.append(found.get(mask) if isinstance(mask, fx.Node) else None)
    return windows


def _window(look: Look) -> int | None:
    last = look(torch.ones((1, LONGEST), dtype=torch.int64), 1)
    if last.dtype != torch.bool or last.dim() != 4:
        return None
    seen = int(last.sum())
    window = seen if seen < LONGEST else 0
    near = min(window, WIDE)
    lengths = [(0, 1), (6, 1), (0, 4), (5, 4), (3, near + 3)]
    lengths += [(window + n, new) for n in (-2, -1, 0, 1, 2) for new in (1, 3)] if window > 2 else []
    return window if all(_is_window(look, window, *pair) for pair in lengths) else None


def _is_window(look: Look, window: int, past: int, new: int) -> bool:
    """Whether the mask of a call lets each token see itself and the `window - 1` before it, and no padding."""
    mask = masks(past, new)
    found = look(mask, new)
    place, real = mask.cumsum(1), mask.bool()
    mine, other = place[:, past:, None], place[:, None, :]
    want = (other <= mine) & real[:, None, :] & ((other > mine - window) if window else True)
    if found.dim() != 4 or found.shape[1] != 1:
        return False
    found = found[:, 0].expand(len(mask), new, past + new)
    return bool((found == want)[real[:, past:]].all())
