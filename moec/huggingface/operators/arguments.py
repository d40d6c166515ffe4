"""Arguments of a function of transformers' that moec's operator stands in for: those that change no result, and all
others, which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moec.errors import MoecError

_NO_CHANGE = {
    *("chunk_size", "use_mambapy", "use_associative_scan", "layer_idx"),  # how it is computed, not what
    *(
        "position_ids",
        "position_embeddings",
        "cache_position",
        "use_cache",
        "num_items_in_batch",
        "logits_to_keep",
    ),  # of the model around it
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
}


def refuse_others(others: Mapping[str, Any], what: str) -> None:
    """Refuse what an operator is called with beside its own arguments, but for what changes no result, and None and
    False, which ask for nothing.

    Raises:
        MoecError: M206 with the name of the first one.
    """
    odd = next((n for n, x in others.items() if n not in _NO_CHANGE and x is not None and x is not False), None)
    if odd is not None:
        said = f"{what} is called with {odd!r}, of which moec's operator knows nothing"
        raise MoecError("M206", said, what, "this version of transformers is not supported; report it")
