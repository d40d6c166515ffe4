"""The native routing rules in standard operators, against `moec::route`."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import read
from moec.backends.onnxruntime.experts.routing import emit_choice, emit_logits
from moec.dialect import Routing
from tests.backends.onnxruntime.blocks import Experts, error, moe_model, tokens

RULES = [
    Routing(2),
    Routing(2, combine="scores", scale=2.5),
    Routing(1, combine="scores"),
    Routing(3, "identity", "softmax"),
    Routing(6),
]


def routed(e: Experts, x: torch.Tensor, rule: Routing) -> dict[str, torch.Tensor]:
    """Ids and weights alone, without the experts."""
    import onnxruntime as ort

    model = moe_model(e, x.dim(), rule, torch.ones(e.experts))
    node = next(n for n in model.graph if n.domain == "moec")
    emit = Emitter(model.graph, node)
    block = read(node)
    ids, weights = emit_choice(emit, block, emit_logits(emit, block))
    for value, dtype in ((ids, ir.DataType.INT64), (weights, ir.DataType.FLOAT)):
        value.type = ir.TensorType(dtype)
    model.graph.outputs[:] = [ids, weights]
    model.graph.remove(node)
    model.opset_imports.pop("moec")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(("ids", "weights"), map(torch.from_numpy, session.run(None, {"x": x.numpy()})), strict=True))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_native_rules(rule: Routing) -> None:
    e, x = Experts(), tokens(2, 5)
    got = routed(e, x, rule)
    weights, ids = torch.ops.moec.route(x.reshape(10, -1) @ e.router.T + 1.0, None, **rule.arguments())
    assert torch.equal(got["ids"], ids)
    assert (
        error(got["weights"], weights) < 1e-5
        or weights.std() == 0
        or (rule.top_k == 1 and torch.allclose(got["weights"], weights))
    )


def test_the_other_normalisation_is_seen() -> None:
    e, x = Experts(), tokens(2, 5)
    got = routed(e, x, Routing(2))
    weights, _ = torch.ops.moec.route(
        x.reshape(10, -1) @ e.router.T + 1.0, None, **Routing(2, combine="scores").arguments()
    )
    assert error(got["weights"], weights) > 0.1
