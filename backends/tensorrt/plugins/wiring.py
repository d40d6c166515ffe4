"""Finding one's way in a network that the ONNX parser has made, to put other layers between its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moec.errors import MoecError


def tensors_of(network: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """Every tensor of a network by name.

    Raises:
        MoecError: M208 when one of `names` is not among them; `what` is to be put between them.
    """
    inputs = [network.get_input(n) for n in range(network.num_inputs)]
    layers = (network.get_layer(n) for n in range(network.num_layers))
    found = {t.name: t for t in [*inputs, *(layer.get_output(k) for layer in layers for k in range(layer.num_outputs))]}
    missing = [name for name in names if name not in found]
    if missing:
        raise MoecError(
            "M208",
            f"the network has no tensor {missing[0]!r} to put {what} between",
            str(names[-1]),
            "take lowering=dense or gathered",
        )
    return found


def output_of(initializer: str) -> str:
    """The parser's name for the tensor that an initializer gives."""
    return f"{initializer}_output"


def producer(network: Any, name: str) -> Any:
    """The layer that gives a tensor: of a block's output it is the last reshape, which makes any leading dimensions of
    `[T, H]`."""
    return next(layer for n in range(network.num_layers) if (layer := network.get_layer(n)).get_output(0).name == name)


def shuffled(network: Any, tensor: Any, shape: tuple[int, ...]) -> Any:
    """A tensor in another shape, -1 for what is left."""
    shuffle = network.add_shuffle(tensor)
    shuffle.reshape_dims = shape
    return shuffle.get_output(0)
