"""What the files beside an engine say of its model: plain facts, wherever they were read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from moec.program.conditions import Assumptions, bounds, broken
from moec.program.decoder_signature import PAST, SEQUENCE

CARD = "README.md"  # the card of a model or an engine, as hubs read it
# among the settings of clients: a library of operators that lies beside the graph and that they have to load
OPERATORS = "custom_ops_library"


@dataclass(frozen=True)
class ModelFacts:
    """A model as its clients need to know it; 0, None or nothing where it is not known or has no meaning.

    Attributes:
        name: for servers, as they allow it in a path.
        model_type: the architecture as transformers calls it.
        vocabulary, context: entries, and the most tokens that a text may have.
        hidden, heads, layers: width, attention heads and blocks.
        key_value_heads, head_width: of the cache, which is `[batch, key_value_heads, past_sequence, head_width]`.
        bos, eos, pad: token ids; each of several `eos` ends a text.
        starts: tokens that the decoder of an encoder-decoder begins every text with.
        sampling: entries of the model's generation config that every client knows by the same name.
        lengths: numbers of its config that speak of windows, chunks, contexts and the like, by name.
        assumes: of which inputs an engine was made for.
        joined: whether a server may put requests of equal shapes into one call.
    """

    name: str
    model_type: str = ""
    vocabulary: int = 0
    context: int = 0
    hidden: int = 0
    heads: int = 0
    layers: int = 0
    key_value_heads: int = 0
    head_width: int = 0
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    starts: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    assumes: Assumptions = field(default_factory=Assumptions)
    joined: bool = True

    def assuming(self, assumed: Assumptions) -> ModelFacts:
        """The facts of an engine: its conditions, and a context that is no longer than they allow a text alone."""
        at = [{"batch": 1, SEQUENCE: n, PAST: 0} for n in {self.context, *bounds(assumed.sizes).get(SEQUENCE, ())}]
        held = [s[SEQUENCE] for s in at if s[SEQUENCE] <= self.context and broken(assumed.sizes, s) is None]
        return replace(self, assumes=assumed, context=max(held, default=self.context))


def model_name(source: str) -> str:
    """A name for servers and paths from how the user named the model: a folder, a hub id, `file.py:callable`, a
    `.pt2` or a `.gguf`."""
    last = source.split(":")[-1] if ".py:" in source else re.sub(r"\.(pt2|gguf)$", "", Path(source).name)
    return re.sub(r"[^\w.-]+", "-", last, flags=re.ASCII).strip(".-") or "model"
