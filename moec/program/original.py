"""What a captured model was beside what it computes, so that its program is called, trained and compiled like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils import _pytree as pytree

from moec.weights.weight import Weight

Loss = Literal["", "next token", "same token"]
SWITCH = 0.01  # how much the balance of the experts counts in the loss of Switch, arXiv 2101.03961, 2.2


@dataclass(frozen=True)
class Place:
    """Where an output's value stands in what a model returns."""

    output: str


@dataclass(frozen=True)
class OutputForm:
    """What a model's forward returns: a tensor, a tuple, a dict, a `ModelOutput`, or these in each other.

    Attributes:
        spec: torch's description of the tree.
        leaves: of the tree, in order: a `Place` for each output, and whatever else the model returned, as it was.
    """

    spec: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, value: Any) -> OutputForm:
        """The form of a tree whose leaves are places."""
        leaves, spec = pytree.tree_flatten(value)
        return cls(spec, tuple(leaves))

    def filled(self, values: Mapping[str, Tensor]) -> Any:
        """The tree with the outputs' values in it."""
        return pytree.tree_unflatten([values[x.output] if isinstance(x, Place) else x for x in self.leaves], self.spec)


@dataclass(frozen=True)
class Original:
    """The model that a program was captured from.

    Attributes:
        form: of what its forward returns; None where nobody knows, and a dict of the outputs stands for it.
        fixed: names of the weights that training leaves alone: its buffers, such as rotary tables.
        outside: those of them that no checkpoint of it holds, since its code makes them anew, as they were captured;
            empty where nobody knows.
        loss: what it computes from labels: cross-entropy with the token after each place, or with the one at it; empty
            where it is no model of text.
        router_aux_loss_coef: how much the balance of its experts counts in its loss.
        source: the `moec.frontend.source.Source` that was captured; None where a bare module was.
    """

    form: OutputForm | None = None
    fixed: frozenset[str] = frozenset()
    outside: Mapping[str, Weight] = field(default_factory=dict)
    loss: Loss = ""
    router_aux_loss_coef: float = SWITCH
    source: Any = None

    def to_plain(self) -> dict[str, Any]:
        """JSON's types; not the form, whose types only code can make, nor numbers, nor the source."""
        return {
            "fixed": sorted(self.fixed), "loss": self.loss, "router_aux_loss_coef": self.router_aux_loss_coef
        }  # fmt: skip

    @classmethod
    def of_plain(cls, data: Mapping[str, Any]) -> Original:
        """Read `to_plain` back; what is missing has its default."""
        known = {name: data[name] for name in ("loss", "router_aux_loss_coef") if name in data}
        return cls(fixed=frozenset(data.get("fixed", ())), **known)

    def __deepcopy__(self, memo: Any) -> Original:
        return self  # nothing in it changes, and its source holds the whole model
