"""A model as it is captured: on the meta device, with moec's operators in the place of experts, attention and scans."""

from __future__ import annotations

from typing import Any

import torch

from moec.huggingface.operators.adapters import adapt
from moec.huggingface.operators.attention import use_moec_attention
from moec.huggingface.operators.block_index import adapt_block_index
from moec.huggingface.operators.compressed_attention import adapt_compressed
from moec.huggingface.operators.convolutions import use_moec_convolutions
from moec.huggingface.operators.convolved_attention import adapt_convolved_attention
from moec.huggingface.operators.dynamic_mask import adapt_dynamic_mask
from moec.huggingface.operators.experts import use_moec_experts
from moec.huggingface.operators.gated_recurrence import adapt_gated_recurrence
from moec.huggingface.operators.kept_prompt import adapt_kept_prompt
from moec.huggingface.operators.lightning import use_moec_lightning
from moec.huggingface.operators.linear_attention import use_moec_linear_attention
from moec.huggingface.operators.looped_index import adapt_looped_index
from moec.huggingface.operators.pooled_index import adapt_pooled_index
from moec.huggingface.operators.product_keys import adapt_product_keys
from moec.huggingface.operators.recurrent_block import adapt_recurrent_blocks
from moec.huggingface.operators.rope import grow_without_memory
from moec.huggingface.operators.scans import use_moec_scans
from moec.huggingface.origin import Origin
from moec.huggingface.reading import skeleton
from moec.weights.lazy import Weight


def capturable(origin: Origin, dtype: torch.dtype, own_attention: bool) -> tuple[Any, dict[str, Weight]]:
    """A private copy of a model, and its lazy weights.

    Args:
        origin: where it comes from. dtype: of its floating weights.
        own_attention: leave attention as transformers has it, for what moec's operator cannot honour.

    Raises:
        MoecError: M205 a weight is missing, M206 experts, a convolution or a recurrence that moec does not know.
    """
    model, weights = origin.captured(dtype)
    skeleton.take_buffers(model, weights)
    skeleton.share(model, weights)
    adapt(model, weights)
    adapt_compressed(model)
    adapt_block_index(model)
    adapt_pooled_index(model)
    adapt_looped_index(model)
    adapt_product_keys(model)
    adapt_dynamic_mask(model)
    adapt_gated_recurrence(model)
    adapt_recurrent_blocks(model)
    adapt_convolved_attention(model)
    adapt_kept_prompt(model)
    use_moec_experts(model, weights)
    use_moec_scans(model)
    use_moec_lightning(model)
    use_moec_convolutions(model)
    use_moec_linear_attention(model)
    grow_without_memory(model)
    if not own_attention:
        use_moec_attention(model)
    return model, weights
