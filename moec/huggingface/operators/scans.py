"""Scans of state space models, which transformers writes as loops and chunks, as operators of moec's: right at any
length, from any state.

A mixer keeps its own forward. Only the function that it calls for the scan is another one; that it computes the same
is shown on drawn numbers first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from moec.huggingface.operators.arguments import refuse_others
from moec.huggingface.operators.proven import UNSUPPORTED, apart, require_same

_NO_LIMIT = (0.0, float("inf"))  # of a step
Results = tuple[Tensor, Tensor]


def use_moec_scans(model: nn.Module) -> int:
    """Let the mixers of a captured copy call `moec::selective_scan` (Mamba) and `moec::linear_attention` (Mamba-2)
    where they call a scan of transformers; returns how many.

    Raises:
        MoecError: M206 when a scan of a known name does not compute what that name says.
    """
    found = [(path, m, name, scan) for path, m in model.named_modules() for name, scan in scans_of(m).items()]
    for path, module, name, scan in found:
        with _disable_current_modes(), torch.no_grad(), torch.device("cpu"):
            difference = _DIFFERENCES[name](scan)
        require_same(difference, path, module, "has another scan than its name says", UNSUPPORTED)
        module.forward = MethodType(partial(_forward, name, _own_forward(module)), module)
    return len(found)


def _own_forward(module: nn.Module) -> FunctionType:
    """The forward of a module's class, without what transformers wraps around it."""
    forward: FunctionType = inspect.unwrap(type(module).forward)  # type: ignore[assignment]
    return forward


def scans_of(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """The scan that a mixer's forward calls, by its name there; none for other modules."""
    forward = _own_forward(module)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return {name: forward.__globals__[name] for name in _SCANS if name in names and name in forward.__globals__}


def _forward(name: str, own: FunctionType, self: Any, *args: Any, **kwargs: Any) -> Any:
    """A mixer's own forward with moec's scan, which is told the state and where there is padding."""
    given = inspect.signature(own).bind(self, *args, **kwargs)
    tokens, cache = given.arguments["hidden_states"], given.arguments.get("cache_params")
    mask = given.arguments.get("attention_mask")
    if mask is not None and not statically_known_true(mask.shape[1] == tokens.shape[1]):
        mask = given.arguments["attention_mask"] = mask[:, -tokens.shape[1] :]
    state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
    scan = _SCANS[name](state, mask)
    code = FunctionType(own.__code__, own.__globals__ | {name: scan}, own.__name__, own.__defaults__, own.__closure__)
    code.__kwdefaults__ = own.__kwdefaults__
    return code(*given.args, **given.kwargs)


# ---------------------------------------------------------------------- Mamba
class _SelectiveScan:
    """`mamba_selective_scan`, https://arxiv.org/abs/2312.00752, that continues a state; of several heads it is called
    once each (Zamba), and their states are `[B, heads, D, N]`."""

    def __init__(self, state: Tensor | None, mask: Tensor | None) -> None:
        self._state, self._mask, self._calls = state, mask, 0

    def __call__(
        self, hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
        D: Tensor | None = None, z: Tensor | None = None, delta_bias: Tensor | None = None,
        delta_softplus: bool = False, return_last_state: bool = False, **others: Any,
    ) -> Tensor | Results:  # fmt: skip
        """`[B, D, S]`, and the last state `[B, D, N]` where it is asked for; hidden_states and dt are `[B, D, S]`, A
        `[D, N]`, B and C `[B, N, S]`."""
        refuse_others(others, "a selective scan")
        x, step = hidden_states.transpose(1, 2), _step(dt.transpose(1, 2), delta_bias, delta_softplus, self._mask)
        keys, queries = B.transpose(1, 2), C.transpose(1, 2)
        y, last = torch.ops.moec.selective_scan(x, step, A, keys, queries, self._before(x, A))
        y = y.transpose(1, 2)
        y = y if D is None else y + hidden_states * D[None, :, None]
        y = y if z is None else y * F.silu(z)
        return (y, last) if return_last_state else y

    def _before(self, x: Tensor, rates: Tensor) -> Tensor:
        if self._state is None:
            return x.new_zeros((x.shape[0], *rates.shape), dtype=torch.promote_types(x.dtype, torch.float32))
        state = self._state if self._state.dim() == 3 else self._state[:, self._calls]
        self._calls += 1
        return state


# ---------------------------------------------------------------------- Mamba-2
def _chunk_scan(mask: Tensor | None) -> Callable[..., Tensor | Results]:
    """`mamba2_chunk_scan`, https://arxiv.org/abs/2405.21060, as attention with a decay a head: values are the inputs
    times their steps, C asks and B answers."""

    def scan(
        hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
        chunk_size: int, D: Tensor | None = None, dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None, dt_softplus: bool = False,
        dt_limit: tuple[float, float] = _NO_LIMIT, return_final_states: bool = False, **others: Any,
    ) -> Tensor | Results:  # fmt: skip
        refuse_others(others, "a scan in chunks")
        step = _step(dt, dt_bias, dt_softplus, mask, dt_limit).float()
        x, keys, queries = hidden_states.float(), B.float(), C.float()
        shape = (x.shape[0], x.shape[2], keys.shape[-1], x.shape[-1])
        before = x.new_zeros(shape) if initial_states is None else initial_states.to(x.dtype).transpose(-1, -2)
        y, last = torch.ops.moec.linear_attention(
            queries, keys, x * step[..., None], before, A.float() * step, scale=1.0
        )
        y = y if D is None else y + D[..., None] * x
        return (y, last.transpose(-1, -2)) if return_final_states else y

    return scan


def _step(
    dt: Tensor,
    bias: Tensor | None,
    softplus: bool,
    mask: Tensor | None,
    limit: tuple[float, float] = _NO_LIMIT,
) -> Tensor:
    """How long each step takes, `[B, S, …]`; none at padding, which so leaves the state as it is."""
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    dt = F.softplus(dt) if softplus else dt
    dt = dt if tuple(limit) == _NO_LIMIT and softplus else dt.clamp(*limit)
    return dt if mask is None else dt * mask[:, :, None].to(dt.dtype)


_SCANS: dict[str, Callable[[Tensor | None, Tensor | None], Callable[..., Any]]] = {
    "mamba_selective_scan": _SelectiveScan,
    "mamba2_chunk_scan": lambda _, mask: _chunk_scan(mask),
}


# ---------------------------------------------------------------------- proof
@cache
def _selective_difference(own: Callable[..., Any]) -> float:
    """The largest difference to transformers' function on drawn numbers, over the spread: a text in one go there, in
    two pieces here."""
    draw = _drawing()
    given: list[Any] = [draw(2, 6, 9), draw(2, 6, 9), -draw(6, 4).exp(), draw(2, 4, 9), draw(2, 4, 9)]
    rest: dict[str, Any] = {"D": draw(6), "delta_bias": draw(6), "delta_softplus": True, "return_last_state": True}
    gate = draw(2, 6, 9)
    wanted, state = own(*given, **rest, z=gate), None
    pieces = []
    for piece in (slice(0, 8), slice(8, 9)):
        cut = [t if t.dim() == 2 else t[..., piece] for t in given]
        y, state = _SelectiveScan(state, None)(*cut, **(rest | {"z": gate[..., piece]}))
        pieces.append(y)
    return _apart((torch.cat(pieces, -1), state), wanted)


@cache
def _chunk_difference(own: Callable[..., Any]) -> float:
    """The same for Mamba-2, which continues a state: at the lengths around a chunk."""
    draw, worst = _drawing(), 0.0
    for length, limit in ((1, _NO_LIMIT), (3, (0.1, 0.7)), (4, _NO_LIMIT), (9, (0.0, 1.0))):
        keys, queries = draw(2, length, 2, 3), draw(2, length, 2, 3)
        given = [draw(2, length, 6, 5), draw(2, length, 6), -draw(6).exp(), keys, queries]
        rest: dict[str, Any] = {"chunk_size": 4, "D": draw(6), "dt_bias": draw(6), "initial_states": draw(2, 6, 5, 3)}
        rest |= {"dt_softplus": True, "dt_limit": limit, "return_final_states": True}
        worst = max(worst, _apart(_chunk_scan(None)(*given, **rest), own(*given, **rest)))
    return worst


_DIFFERENCES = {"mamba_selective_scan": _selective_difference, "mamba2_chunk_scan": _chunk_difference}


def _drawing() -> Callable[..., Tensor]:
    return partial(torch.randn, generator=torch.Generator().manual_seed(0))


def _apart(found: Any, wanted: Any) -> float:
    return max(apart(f, w) for f, w in zip(found, wanted, strict=True))
