"""TensorRT's MoE layer takes a block's place in a parsed network. What the layer computes needs a GPU that has it; its
wiring does not."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from moec.backends.tensorrt.edition import EDITIONS
from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.plugins.native_layer import splice
from moec.backends.tensorrt.policy import BuildPlan
from moec.errors import MoecError
from tests.backends.onnxruntime.blocks import Experts, experts_model
from tests.backends.tensorrt.tiny import needs_rtx

pytestmark = needs_rtx


def parsed(tokens: int, biases: bool) -> tuple[Any, Any, dict[str, Any], list[Any]]:
    """The library, a network of one block of 6 experts, what is to be spliced, and what must outlive the network."""
    model = experts_model(Experts(biases=biases), 3, 2)
    (fact,) = lower_experts(model, BuildPlan("tensorrt", architectures=(100,), tokens=tokens, length=1))
    model.opset_imports.pop("moec", None)
    trt = EDITIONS["tensorrt-rtx"].load()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(ir.to_proto(model).SerializeToString())
    return trt, network, fact["native"], [builder, parser, logger]


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("tokens", "form"), [(1, "gathered"), (8, "dense")])
def test_the_layer_stands_between_the_blocks_ends(tokens: int, form: str, biases: bool) -> None:
    trt, network, block, _alive = parsed(tokens, biases)
    (layer,) = splice(trt, network, [block])
    assert layer.type == trt.LayerType.MOE and layer.activation_type == trt.MoEActType.SILU
    inputs = [layer.get_input(n) for n in range(layer.num_inputs) if layer.get_input(n) is not None]
    shapes = [tuple(t.shape) for t in inputs]
    assert shapes[:3] == [(1, -1, 32), (1, -1, 2), (1, -1, 2)]
    assert shapes[3:6] == [(6, 32, 24), (6, 32, 24), (6, 24, 32)], form
    assert shapes[6:] == ([(6, 24), (6, 24), (6, 32)] if biases else [])
    assert tuple(layer.get_output(0).shape) == (1, -1, 32)
    last = next(g for n in range(network.num_layers) if (g := network.get_layer(n)).get_output(0).name == "y")
    assert last.get_input(0).name == layer.get_output(0).name


def test_a_network_without_the_blocks_tensors_is_refused() -> None:
    trt, network, block, _alive = parsed(1, False)
    with pytest.raises(MoecError, match="no tensor 'elsewhere'"):
        splice(trt, network, [{**block, "x": "elsewhere"}])
