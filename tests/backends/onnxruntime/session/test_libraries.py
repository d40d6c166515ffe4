"""CUDA's libraries are looked for by name, and what is missing is said with what needs it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnxruntime.session.libraries import (
    CUDNN_OPERATORS,
    Library,
    cuda_is_usable,
    device_count,
    libraries,
    missing,
    phrases,
    require_cuda,
    without_cudnn,
)
from moec.errors import MoecError
from tests.backends.onnxruntime.session.there import there
from tests.cuda_stand_in.build import provider

STANDARD = Library("libc.so.6", "the C library", "every program", "it is there")
NONE = Library("libnothing.so.7", "nothing", "nobody", "do not")


def test_the_loader_is_asked() -> None:
    assert STANDARD.here and not NONE.here


def test_what_the_same_engines_need_is_said_together() -> None:
    other = Library("libother.so.1", "another", "every program", "install it")
    said = phrases([STANDARD, other, NONE])
    assert said == (
        "libc.so.6 (the C library), libother.so.1 (another), which every program needs: it is there; install it",
        "libnothing.so.7 (nothing), which nobody needs: do not",
    )


def test_the_list_is_that_of_the_provider_itself() -> None:
    provider()  # or skipped
    needed = provider().read_bytes()
    files = [library.file for library in libraries()]
    assert files[-1] == "libcudnn.so.9" and all(name.encode() in needed for name in files[:-1])
    assert b"libnothing.so.7" not in needed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_usable() -> None:
    assert not cuda_is_usable() and device_count() == 0
    with pytest.raises(MoecError) as caught:
        require_cuda("onnxruntime:cuda")
    assert caught.value.code in ("M301", "M302")


def test_cudnn_is_named_with_its_operator() -> None:
    provider()
    error = without_cudnn("Conv", "engine")
    assert error.code == "M301" and error.what == "Conv on CUDA needs cuDNN, and libcudnn.so.9 is not found"


# ---------------------------------------------------------------------- on the stand-in
def looked() -> list[object]:
    """What is there, and which operators the provider refuses without cuDNN, of those that are easily made."""
    return [device_count(), cuda_is_usable(), [library.file for library in missing()], [*map(_refused, REDUCTIONS)]]


REDUCTIONS = [name for name in CUDNN_OPERATORS if name.startswith("Reduce")] + ["ReduceSum", "ReduceMean"]


def _refused(name: str) -> bool:
    import onnxruntime as ort

    x = ir.Value(name="x", shape=ir.Shape([5, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    axes = ir.Value(name="axes", const_value=ir.tensor(np.array([1]), name="axes"))
    node = ir.node(name, [x, axes])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[axes], opset_imports={"": 20})
    options = ort.SessionOptions()
    options.log_severity_level = 4
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    try:
        session.run(None, {"x": np.ones((5, 8), np.float32)})
    except Exception as error:
        return "cuDNN is unavailable" in str(error)
    return False


def test_all_but_cudnn_is_found_on_the_stand_in_and_what_needs_that_is_known() -> None:
    count, usable, lost, refused = there(looked).result
    assert (count, usable, lost) == (1, True, ["libcudnn.so.9"])
    assert refused == [True] * (len(REDUCTIONS) - 2) + [False, False]
