"""TensorRT's own MoE layer in the place of a block's standard operators, put into a network that the ONNX parser has made.

The ONNX file keeps the standard operators, which is what the engine is checked by under ONNX Runtime; they are dead once the layer stands
there, and the builder drops them. Shapes that the layer wants: hidden states `[B, S, H]`, experts and weights `[B, S, K]`, matrices
`[E, H, I]` twice and `[E, I, H]`. Nothing here has run on a GPU that has the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moec.errors import MoecError


def splice(trt: Any, network: Any, blocks: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Let the MoE layer compute the output of every one of these blocks.

    Args:
        trt: the library.
        network: as parsed; changed in place.
        blocks: `native` of facts of `moe.lower_experts`.

    Returns:
        The layers.

    Raises:
        MoecError: M208 when the network lacks a tensor of a block, or the library gives no layer.
    """
    return [_splice(trt, network, block) for block in blocks]


def _splice(trt: Any, network: Any, block: Mapping[str, Any]) -> Any:
    tensors = _tensors(network)
    missing = [name for name in _names(block) if name not in tensors]
    if missing:
        raise MoecError("M208", f"the network has no tensor {missing[0]!r} to put the MoE layer between", str(block["y"]), "take lowering=dense or gathered")
    x = tensors[block["x"]]
    flat = _shuffled(network, x, (1, -1, block["hidden"]))
    ids, weights = (_shuffled(network, tensors[block[name]], (1, -1, block["top_k"])) for name in ("ids", "weights"))
    ids, weights = (network.add_cast(t, d).get_output(0) for t, d in ((ids, trt.int32), (weights, x.dtype)))
    layer = network.add_moe(flat, ids, weights)
    if layer is None:
        raise MoecError("M208", "the library gives no MoE layer", str(block["y"]), "take lowering=dense or gathered")
    matrices = [_matrix(network, tensors, block, role) for role in ("gate", "up", "down")]
    layer.set_gated_weights(*matrices, trt.MoEActType.SILU)
    if "down.bias" in block["weights_of"]:
        sizes = {"gate": block["inner"], "up": block["inner"], "down": block["hidden"]}
        biases = [_shuffled(network, tensors[_output(block["weights_of"][f"{r}.bias"])], (block["experts"], n)) for r, n in sizes.items()]
        layer.set_gated_biases(*biases)
    _producer(network, block["y"]).set_input(0, layer.get_output(0))
    return layer


def _output(name: str) -> str:
    """The parser's name for what a constant gives."""
    return f"{name}_output"


def _names(block: Mapping[str, Any]) -> list[str]:
    return [*(str(block[name]) for name in ("x", "ids", "weights", "y")), *map(_output, block["weights_of"].values())]


def _tensors(network: Any) -> dict[str, Any]:
    inputs = [network.get_input(n) for n in range(network.num_inputs)]
    layers = (network.get_layer(n) for n in range(network.num_layers))
    return {t.name: t for t in [*inputs, *(layer.get_output(k) for layer in layers for k in range(layer.num_outputs))]}


def _producer(network: Any, name: str) -> Any:
    """The layer that gives a tensor: of a block's output it is the last reshape, which makes any leading dimensions of `[1, T, H]`."""
    return next(layer for n in range(network.num_layers) if (layer := network.get_layer(n)).get_output(0).name == name)


def _shuffled(network: Any, tensor: Any, shape: tuple[int, ...]) -> Any:
    layer = network.add_shuffle(tensor)
    layer.reshape_dims = shape
    return layer.get_output(0)


def _matrix(network: Any, tensors: Mapping[str, Any], block: Mapping[str, Any], role: str) -> Any:
    """A matrix as `[E, H, I]` (gate, up) or `[E, I, H]` (down). The gathered form holds `[E, out, in]`; the dense one `[E * out, in]`, its
    second matrix turned already."""
    tensor, sizes = tensors[_output(block["weights_of"][role])], (block["inner"], block["hidden"])
    dense = len(tuple(tensor.shape)) == 2
    layer = network.add_shuffle(_shuffled(network, tensor, (block["experts"], *sizes)) if dense else tensor)
    if not (dense and role == "down"):
        layer.second_transpose = (0, 2, 1)
    return layer.get_output(0)
