"""Logits are computed from a chosen token on; who says nothing gets all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.backends.onnxruntime.optimization.last_logits import LOGITS_FROM, cut_logits
from moec.program.decoder_signature import IDS, LOGITS, MASK


@pytest.fixture(scope="module")
def session(mixtral_engine: Path) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(str(mixtral_engine / "model.onnx"), providers=["CPUExecutionProvider"])


def logits(session: Any, **more: Any) -> np.ndarray:
    ids = np.arange(10).reshape(2, 5) + 3
    feeds = {IDS: ids, MASK: np.ones_like(ids)}
    feeds |= {i.name: np.zeros((2, *i.shape[1:2], 0, i.shape[3]), np.float32) for i in session.get_inputs()[2:]}
    found: np.ndarray = session.run([LOGITS], {**feeds, **more})[0]
    return found


def test_a_client_that_knows_nothing_of_it_gets_all(session: Any) -> None:
    assert LOGITS_FROM not in [i.name for i in session.get_inputs()] and logits(session).shape == (2, 5, 96)


@pytest.mark.parametrize("first", [-1, 2])
def test_rows_before_the_first_are_left_out(session: Any, first: int) -> None:
    want, found = logits(session), logits(session, **{LOGITS_FROM: np.array([first])})
    assert found.shape == want[:, first:].shape and np.abs(found - want[:, first:]).max() < 1e-4 * want.std()
    assert (
        np.abs(found - want[:, first - 1 : -1][:, : found.shape[1]]).max() > 0.1 * want.std()
    )  # the mutant: rows before


PAST = "past_key_values.0.recurrent_state"


def graph(cache: bool = True, twice: bool = False) -> ir.Model:
    """Rows times a weight; `twice`: the product is another output too."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape(["batch", "sequence", 4]), type=kind)
    past = ir.Value(name=PAST if cache else "other", shape=ir.Shape(["batch", 1, 3, 4]), type=kind)
    model = ir.Model(ir.Graph([x, past], [], nodes=[], opset_imports={"": 20}), ir_version=10)
    weight = ir.Value(name="w", const_value=ir.tensor(np.eye(4, dtype=np.float32), name="w"))
    model.graph.register_initializer(weight)
    product = ir.node("MatMul", [x, weight])
    model.graph.append(product)
    product.outputs[0].name = "inner"
    soft = ir.node("Tanh", product.outputs)
    model.graph.append(soft)
    soft.outputs[0].name, soft.outputs[0].type = LOGITS, kind
    model.graph.outputs.extend([soft.outputs[0], *([product.outputs[0]] if twice else [])])
    return model


def test_only_a_decoders_logits_that_nobody_else_reads_are_cut() -> None:
    assert cut_logits(graph()) and not cut_logits(graph(cache=False)) and not cut_logits(graph(twice=True))
    untouched = graph(twice=True)
    cut_logits(untouched)
    assert [v.name for v in untouched.graph.inputs] == ["x", PAST] and len(list(untouched.graph)) == 2
