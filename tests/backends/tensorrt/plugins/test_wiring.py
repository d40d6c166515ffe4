"""Names of a parsed network, as the real parser gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec.backends.tensorrt.edition import RTX
from moec.backends.tensorrt.plugins.wiring import output_of, producer, shuffled, tensors_of
from moec.errors import MoecError
from tests.backends.tensorrt.tiny import needs_rtx, write

pytestmark = needs_rtx


@pytest.fixture
def parsed(tmp_path: Path) -> Any:
    trt = RTX.load()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(write(tmp_path / "model.onnx")))
    return network, (builder, parser, logger)


def test_inputs_outputs_and_initializers_are_found(parsed: Any) -> None:
    network, _ = parsed
    found = tensors_of(network, ["x", output_of("w"), "y"], "a layer")
    assert tuple(found["x"].shape) == (-1, 8) and tuple(found[output_of("w")].shape) == (8, 8)
    assert producer(network, "h").get_output(0).name == "h" and producer(network, "y").get_input(0).name == "h"


def test_what_is_not_there_is_named(parsed: Any) -> None:
    with pytest.raises(MoecError, match="no tensor 'elsewhere' to put a layer between") as caught:
        tensors_of(parsed[0], ["x", "elsewhere", "y"], "a layer")
    assert caught.value.code == "M208" and caught.value.where == "y"


def test_another_shape(parsed: Any) -> None:
    network, _ = parsed
    assert tuple(shuffled(network, network.get_input(0), (-1, 4)).shape) == (-1, 4)
