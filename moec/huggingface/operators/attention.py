"""One attention implementation for transformers: every attention of the interface becomes a single
`moec::attention`."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from moec.errors import MoecError

IMPLEMENTATION = "moec"
ATTENTION = "attention"  # where an error says that it comes from
# set on the attention of models in which tokens look at what padding says: padding sees nothing, and says nothing
PADDING_COUNTS = "_moec_padding_counts"
# set on modules that hand tokens what padding says: padding looks where transformers lets it, right behind a text too
PADDING_LOOKS, AS_TRANSFORMERS = "_moec_padding_looks", f"{IMPLEMENTATION}_as_transformers"
_ASKS = "ALL_ATTENTION_FUNCTIONS.get_interface("  # of a model's file
# what transformers passes for kernels that make their own masks; our mask holds all of it already
_IN_THE_MASK = (
    "sliding_window",
    "is_causal",
    "position_ids",
    "cache_position",
    "use_cache",
    "attention_dropout",
    "chunk_size",
)


def use_moec_attention(model: Any) -> bool:
    """Switch a captured copy to `moec::attention`; returns whether the model has the interface.

    Masks keep being made by transformers, as booleans, so that windows, chunks and whatever else a model puts into them
    are right.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if not _asks_the_interface(model):
        return False
    name = AS_TRANSFORMERS if any(hasattr(m, PADDING_LOOKS) for m in model.modules()) else IMPLEMENTATION
    AttentionInterface.register(name, _forward)
    AttentionMaskInterface.register(name, _mask if name == IMPLEMENTATION else _mask_of_places)
    model.set_attn_implementation(name)
    return True


def _asks_the_interface(model: Any) -> bool:
    """Whether a model's attention is the implementation that is set, as its class says, or, of one that generates text,
    its source: not every class that asks the interface says so (Qwen3-Next, Jamba, Nemotron-H)."""
    if getattr(model, "_supports_attention_backend", False):
        return True
    file = sys.modules.get(type(model).__module__)
    try:
        return bool(model.can_generate()) and _ASKS in inspect.getsource(file)  # type: ignore[arg-type]
    except (AttributeError, OSError, TypeError):  # no model of transformers', or no file
        return False


def _mask_of_places(*args: Any, **kwargs: Any) -> Tensor:
    """The same where all of a call's columns are counted, as transformers does."""
    return _mask(*args, **kwargs, count_padding=True)


def _mask(*args: Any, count_padding: bool = False, **kwargs: Any) -> Tensor:
    """transformers' own mask, always written out, that remembers whether it lets a token look at a later one."""
    from transformers.masking_utils import sdpa_mask

    allows, padding = kwargs.get("mask_function"), kwargs.get("attention_mask")
    causal = _is_causal(allows)
    window = not count_padding and kwargs.get("local_size") is not None
    if causal and allows is not None and padding is not None and window:
        kwargs["mask_function"] = _among_tokens(allows, padding)
    seen = _seen(padding, **kwargs)
    if seen is not None:
        kwargs["attention_mask"] = None
    made = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    assert made is not None
    made = made if seen is None else made & seen
    made.moec_causal = causal  # type: ignore[attr-defined]
    return made


def _seen(padding: Tensor | None, kv_length: int = 0, kv_offset: int = 0, **_: Any) -> Tensor | None:
    """Padding `[B, T]` as a view `[B, 1, 1, T]` of what may be seen; transformers would look each element up by index,
    a dozen nodes in a graph.

    None where the mask is not of the keys' own length, which is left to transformers.
    """
    if (
        padding is None
        or padding.dim() != 2
        or not (isinstance(kv_offset, int) and kv_offset == 0)
        or padding.shape[1] != kv_length
    ):
        return None
    return padding.to(torch.bool)[:, None, None, :]


def _among_tokens(allows: Any, padding: Tensor) -> Any:
    """A window or chunk that counts a text's own tokens only.

    onnxruntime-genai pads prompts on the right, so padding lies between a prompt and what follows it; it must take no
    room in the window. With padding on the left, as transformers has it, every token keeps its place.
    """
    seen = padding.to(torch.int64).cumsum(-1)
    place = seen - 1 + (seen == 0).sum(-1, keepdim=True)
    return lambda batch, head, token, other: allows(batch, head, place[batch, token], place[batch, other])


def _is_causal(allows: Any) -> bool:
    """Whether a mask function forbids every later token, as far as a few tokens tell; one that reads the inputs is not
    asked."""
    if allows is None:
        return True
    try:
        with _disable_current_modes():  # torch.export is tracing
            first = torch.zeros((), dtype=torch.int64)
            token, other = torch.arange(9)[:, None], torch.arange(9)[None]
            return not bool((allows(first, first, token, other) & (other > token)).any())
    except Exception:  # it depends on the batch
        return False


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    indices: Tensor | None = None,
    block_indices: Tensor | None = None,
    position_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention implementation: what transformers calls instead of its own. Raises M206 for an argument that the
    operator cannot honour."""
    odd = [k for k, v in others.items() if isinstance(v, Tensor) and k not in _IN_THE_MASK]
    if odd:
        raise MoecError(
            "M206",
            f"{type(module).__name__} passes {odd[0]!r} to its attention",
            ATTENTION,
            "compile it with --no-cache",
        )
    if attention_mask is None and getattr(module, "is_causal", False):
        raise MoecError(
            "M206",
            f"{type(module).__name__} relies on a causal mask of the kernel's own",
            ATTENTION,
            "compile it with --no-cache",
        )
    causal = bool(getattr(attention_mask, "moec_causal", False))
    if indices is not None:
        attention_mask = _only_at(attention_mask, indices, key.shape[2])
    if block_indices is not None:
        causal = False  # a token whose blocks are all padding sees everything, later tokens too
        attention_mask = _only_in(
            attention_mask, block_indices, module.indexer.block_size, query.shape[1], key.shape[2]
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = attention_mask if position_bias is None else _biased(attention_mask, position_bias)
    if sinks is not None:
        key, value, scores = _with_sink_as_key(key, value, scores, sinks)
        causal = False  # that key comes after all tokens
    result = torch.ops.moec.attention(
        query, key, value, scores, s_aux, scale=float(scale), softcap=float(softcap or 0.0), causal=causal
    )
    if getattr(module, PADDING_COUNTS, False) and block_indices is None and attention_mask is not None:
        result = result.masked_fill(~attention_mask.any(-1).permute(0, 2, 1).unsqueeze(-1), 0.0)
    return result, None


def _only_at(mask: Tensor | None, indices: Tensor, length: int) -> Tensor:
    """A mask `[B, 1, S, T]` of those keys alone that an index chose for each token, `[B, S, K]`, of `length` T
    (DeepSeek-V3.2)."""
    chosen = indices.new_zeros((*indices.shape[:2], length), dtype=torch.bool)
    chosen = chosen.scatter(-1, indices.to(torch.int64), True).unsqueeze(1)
    return _both(mask, chosen)


def _only_in(mask: Tensor | None, blocks: Tensor, size: int, heads: int, length: int) -> Tensor:
    """A mask `[B, N, S, T]` of the keys in those blocks of `size` alone that an index chose, `[B, G, S, K]`, for the
    heads of each group; -1 is none (MiniMax-M3)."""
    count = (length + size - 1) // size
    chosen = blocks.new_zeros((*blocks.shape[:3], count + 1), dtype=torch.bool)
    chosen = chosen.scatter(-1, torch.where(blocks < 0, count, blocks), True)
    chosen = chosen[..., torch.arange(length, device=blocks.device) // size]
    return _both(mask, chosen.repeat_interleave(heads // blocks.shape[1], dim=1))


def _biased(mask: Tensor | None, bias: Tensor) -> Tensor:
    """A mask that adds a bias of the model's own to the scores `[B, N, S, T]` of what may be seen (Inkling)."""
    if mask is None:
        return bias
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def _with_sink_as_key(key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A sink for each token and head `[B, N, S, 1]` as one more key of zeros, with the sink as its score and a value of
    zeros (Inkling 2)."""
    seen = _biased(mask, sinks.new_zeros(*sinks.shape[:3], key.shape[2]))
    key, value = (torch.cat([t, t.new_zeros((*t.shape[:2], 1, t.shape[3]))], dim=2) for t in (key, value))
    return key, value, torch.cat([seen, sinks.to(seen.dtype)], dim=-1)


def _both(mask: Tensor | None, chosen: Tensor) -> Tensor:
    if mask is None:
        return chosen
    return mask & chosen if mask.dtype == torch.bool else mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)
