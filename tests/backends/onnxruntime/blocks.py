"""Small ONNX models of one opaque `moec` node, as the exporter leaves them, and runs of what they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from moec.backends.onnx.tensors import DTYPES, add_initializer
from moec.backends.onnxruntime.experts.lower import lower_experts
from moec.backends.onnxruntime.packed.quantized import lower_quantized
from moec.dialect import Activation, Routing
from moec.weights.lazy import from_tensor

ACTIVATIONS = [
    Activation(),
    Activation("silu", alpha=1.702, beta=1.0, limit=0.7),
    Activation("silu", limit=0.5),
    Activation("silu", limit=0.3, clamp_after=True),
    Activation("gelu"),
    Activation("gelu_tanh"),
    Activation("relu"),
    Activation("relu2"),
    Activation("identity"),
    Activation("sigmoid", limit=0.4),
    *(
        Activation(name, gated=False)
        for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2", "tanh", "sigmoid", "identity")
    ),
    Activation("silu", gated=False, alpha=1.702),
]


@dataclass
class Experts:
    """Random experts. E, H, I as in the dialect; weights large enough for activations to bend and clamps to bite."""

    experts: int = 6
    hidden: int = 32
    inner: int = 24
    activation: Activation = field(default_factory=Activation)
    biases: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        wide = self.activation.rows_per_neuron * self.inner
        make = lambda *s: (torch.randn(*s, generator=g) / s[-1] ** 0.5).to(self.dtype)  # noqa: E731
        self.w_in, self.w_out = make(self.experts, wide, self.hidden), make(self.experts, self.hidden, self.inner)
        self.b_in, self.b_out = (
            (make(self.experts, wide), make(self.experts, self.hidden)) if self.biases else (None, None)
        )
        self.router = make(self.experts, self.hidden)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.w_in, self.w_out, self.b_in, self.b_out


def reference(e: Experts, x: Tensor, routing: Routing, bias: Tensor | None = None) -> Tensor:
    """What the dialect says of a block with these experts; `bias`: of its router."""
    return torch.ops.moec.moe(x, e.router, bias, None, *e.tensors, **routing.arguments(), **e.activation.arguments())  # type: ignore[no-any-return]


def tokens(*leading: int, hidden: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(*leading, hidden, generator=torch.Generator().manual_seed(seed))


def choice(*leading: int, experts: int = 6, top_k: int = 2, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Distinct random ids and weights that sum to one."""
    scores = torch.randn(*leading, experts, generator=torch.Generator().manual_seed(seed))
    top, ids = scores.topk(top_k, dim=-1)
    return ids, torch.softmax(top, -1)


def experts_model(e: Experts, rank: int, top_k: int, score_before: bool = False, weights_op: str = "") -> ir.Model:
    """x, ids and weights are inputs; with `weights_op` the weights pass through it first, and ids come from a `TopK` of
    an input `scores`."""
    lead = [f"d{n}" for n in range(rank - 1)]
    x, ids = value("x", e.dtype, [*lead, e.hidden]), value("ids", torch.int64, [*lead, top_k])
    weights = value("weights", e.dtype, [*lead, top_k])
    graph = ir.Graph([x, ids, weights], [], nodes=[], opset_imports={"": 20, "moec": 1}, name="block")
    if weights_op:
        scores = value("scores", e.dtype, [*lead, e.experts])
        graph.inputs[1:] = [scores]
        k = add_initializer(graph, from_tensor(torch.tensor([top_k]), "k"), "k")
        top = ir.node("TopK", [scores, k], num_outputs=2)
        mix = ir.node(weights_op, [top.outputs[0]])
        graph.extend([top, mix])
        weights, ids = mix.outputs[0], top.outputs[1]
        weights.type, weights.shape = ir.TensorType(DTYPES[e.dtype]), ir.Shape([*lead, top_k])
    return finish(graph, e, "Experts", [x, ids, weights], {**e.activation.arguments(), "score_before": score_before})


def masked_model(e: Experts, top_k: int, score_before: bool) -> ir.Model:
    """Weights below 0.3 are set to zero in the graph."""
    model = experts_model(e, 2, top_k, score_before)
    (node,) = model.graph
    floor, none = (
        add_initializer(model.graph, from_tensor(torch.tensor(v), n), n) for v, n in ((0.3, "floor"), (0.0, "none"))
    )
    small = ir.node("Less", [node.inputs[2], floor])
    kept = ir.node("Where", [small.outputs[0], none, node.inputs[2]])
    kept.outputs[0].type, kept.outputs[0].shape = node.inputs[2].type, node.inputs[2].shape  # type: ignore[union-attr]
    model.graph.insert_before(node, [small, kept])
    node.replace_input_with(2, kept.outputs[0])
    return model


def moe_model(e: Experts, rank: int, routing: Routing, router_bias: Tensor | None = None) -> ir.Model:
    x = value("x", e.dtype, [*(f"d{n}" for n in range(rank - 1)), e.hidden])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20, "moec": 1}, name="block")
    router = add_initializer(graph, from_tensor(e.router, "router"), "router")
    bias = (
        None if router_bias is None else add_initializer(graph, from_tensor(router_bias, "router_bias"), "router_bias")
    )
    return finish(
        graph,
        e,
        "Moe",
        [x, router, bias, None],
        {**routing.arguments(), **e.activation.arguments(), "score_before": False},
    )


def finish(graph: ir.Graph, e: Experts, op: str, inputs: list[ir.Value | None], rule: dict[str, Any]) -> ir.Model:
    present = [(t, n) for t, n in zip(e.tensors, ("w_in", "w_out", "b_in", "b_out"), strict=True) if t is not None]
    inputs = [*inputs, *(add_initializer(graph, from_tensor(t, n), n) for t, n in present)]
    attributes = {k: int(v) if isinstance(v, bool) else v for k, v in rule.items()}
    x = inputs[0]
    assert x is not None
    y = ir.Value(name="y", type=x.type, shape=x.shape)
    graph.append(ir.node(op, inputs, attributes, domain="moec", outputs=[y], name="layer"))
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def value(name: str, dtype: torch.dtype, shape: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(DTYPES[dtype]), shape=ir.Shape(shape))


def lowered(model: ir.Model, optimize_for: str, provider: str = "cpu") -> tuple[ir.Model, dict[str, str]]:
    (fact,) = lower_experts(model, optimize_for, provider)
    lower_quantized(model)
    return model, fact


def session(model: ir.Model) -> Any:
    """An ONNX Runtime session of a model in memory, on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, **inputs: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(session(model).run(["y"], {k: v.numpy() for k, v in inputs.items()})[0]))


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference in units of the reference's standard deviation."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if want.numel() == 0:
        return 0.0
    return float((got.double() - want.double()).abs().max() / want.double().std())


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]
