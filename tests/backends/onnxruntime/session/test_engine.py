"""ONNX Runtime sessions as engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moec
from moec.backends.onnxruntime.session.engine import MODEL_FILE, OnnxruntimeEngine
from moec.errors import MoecError
from moec.targets.target import Target
from tests.moe_module import VOCAB, MoeModel, source_of

IDS = torch.randint(0, VOCAB, (2, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ort") / "engine"
    moec.compile(source_of(MoeModel()), out=out)
    return out


def test_signature_and_numbers(folder: Path) -> None:
    engine = OnnxruntimeEngine(folder, Target("onnxruntime"))
    assert (engine.name, engine.outputs) == ("onnxruntime:cpu", ("logits",))
    assert [(i.name, i.dtype, i.shape) for i in engine.inputs] == [("input_ids", torch.int64, ("batch", "sequence"))]
    want = MoeModel().eval()(IDS)["logits"].detach()
    assert float((engine(input_ids=IDS)["logits"] - want).abs().max() / want.std()) < 1e-3
    engine.close()


def test_options_do_not_change_the_numbers(folder: Path) -> None:
    plain, threads = (OnnxruntimeEngine(folder, Target("onnxruntime", "cpu", o)) for o in ({}, {"threads": "2"}))
    mapped = OnnxruntimeEngine(folder, Target("onnxruntime"), prepack=False)
    want = plain(input_ids=IDS)["logits"]
    assert all(torch.allclose(e(input_ids=IDS)["logits"], want, atol=1e-4) for e in (threads, mapped))


def test_values_inside(folder: Path) -> None:
    engine = OnnxruntimeEngine(folder, Target("onnxruntime"))
    inside = engine.intermediates({"input_ids": IDS})
    assert len(inside) > 10 and torch.allclose(inside["logits"], engine(input_ids=IDS)["logits"], atol=1e-4)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"not a model")
    with pytest.raises(MoecError) as caught:
        OnnxruntimeEngine(tmp_path, Target("onnxruntime"))
    assert caught.value.code == "M106"


def failing(path: Path, axis: int) -> None:
    """A decoder without a cache, of which one node fails where `axis` is none of its input."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    names = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "total"]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in names.items()]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 1])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("CumSum", ["cast", "axis"], ["sums"]),
        helper.make_node("Unsqueeze", ["sums", "last"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(np.array(v), n) for n, v in {"axis": axis, "last": [2]}.items()]
    graph = helper.make_graph(nodes, "failing", inputs, [out], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.mark.parametrize(("axis", "code"), [(1, ""), (7, "M211")])
def test_a_node_that_fails_is_said(tmp_path: Path, axis: int, code: str) -> None:
    failing(tmp_path / MODEL_FILE, axis)
    engine = OnnxruntimeEngine(tmp_path, Target("onnxruntime"))
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    for call in (lambda: engine.run(given), lambda: engine.continuation().step(*(v.numpy() for v in given.values()))):
        try:
            call()
            assert not code
        except MoecError as error:
            assert (error.code, "CumSum" in str(error), str(error).count("\n")) == (code, True, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_hardware_is_said_and_not_worked_around(folder: Path) -> None:
    with pytest.raises(MoecError) as caught:
        OnnxruntimeEngine(folder, Target("onnxruntime", "cuda"))
    assert caught.value.code == "M302"
