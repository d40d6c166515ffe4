"""TensorRT's own MoE layer in the place of a block's standard operators, put into a network that the ONNX parser has
made.

The ONNX file keeps the standard operators, which is what the engine is checked by under ONNX Runtime; they are dead
once the layer stands there, and the builder drops them. Shapes that the layer wants: hidden states `[B, S, H]`, experts
and weights `[B, S, K]`, matrices `[E, H, I]` twice and `[E, I, H]`. Nothing here has run on a GPU that has the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moec.backends.tensorrt.plugins.wiring import output_of, producer, shuffled, tensors_of
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
    names = [
        *map(output_of, block["weights_of"].values()),
        *(str(block[name]) for name in ("x", "ids", "weights", "y")),
    ]
    tensors = tensors_of(network, names, "the MoE layer")
    x = tensors[block["x"]]
    flat = shuffled(network, x, (1, -1, block["hidden"]))
    ids, weights = (shuffled(network, tensors[block[name]], (1, -1, block["top_k"])) for name in ("ids", "weights"))
    ids, weights = (network.add_cast(t, d).get_output(0) for t, d in ((ids, trt.int32), (weights, x.dtype)))
    layer = network.add_moe(flat, ids, weights)
    if layer is None:
        raise MoecError("M208", "the library gives no MoE layer", str(block["y"]), "take lowering=dense or gathered")
    matrices = [_matrix(network, tensors, block, role) for role in ("gate", "up", "down")]
    layer.set_gated_weights(*matrices, trt.MoEActType.SILU)
    if "down.bias" in block["weights_of"]:
        sizes = {"gate": block["inner"], "up": block["inner"], "down": block["hidden"]}
        biases = [
            shuffled(network, tensors[output_of(block["weights_of"][f"{r}.bias"])], (block["experts"], n))
            for r, n in sizes.items()
        ]
        layer.set_gated_biases(*biases)
    producer(network, block["y"]).set_input(0, layer.get_output(0))
    return layer


def _matrix(network: Any, tensors: Mapping[str, Any], block: Mapping[str, Any], role: str) -> Any:
    """A matrix as `[E, H, I]` (gate, up) or `[E, I, H]` (down). The gathered form holds `[E, out, in]`; the dense one
    `[E * out, in]`, its second matrix turned already."""
    tensor, sizes = tensors[output_of(block["weights_of"][role])], (block["inner"], block["hidden"])
    dense = len(tuple(tensor.shape)) == 2
    layer = network.add_shuffle(shuffled(network, tensor, (block["experts"], *sizes)) if dense else tensor)
    if not (dense and role == "down"):
        layer.second_transpose = (0, 2, 1)
    return layer.get_output(0)
