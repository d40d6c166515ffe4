"""Blocks in moec's own operator, run by ONNX Runtime, against the dialect's reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.tensors import DTYPES, add_initializer
from moec.backends.onnxruntime.experts.lower import lower_experts
from moec.backends.onnxruntime.experts.own_kernel import FORMULATION, FUNCTIONS, OWN
from moec.dialect import ACTIVATIONS, Activation, Routing
from moec.weights.lazy import from_tensor
from tests.backends.onnxruntime.blocks import (
    Experts,
    choice,
    error,
    experts_model,
    masked_model,
    moe_model,
    ops,
    tokens,
)

LIMIT = 3e-6
RULES = [
    Routing(2),
    Routing(1, "softmax", "scores"),
    Routing(6, "softmax", "scores", scale=2.5),
    Routing(3, "softmax", "softmax"),
    Routing(2, "identity", "softmax"),
    Routing(2, "identity", "scores"),
    Routing(3, "sigmoid", "renormalize", epsilon=1e-20, scale=2.5),
    Routing(2, "sigmoid", "scores"),
    Routing(2, "sqrt_softplus", "renormalize", floor=1e-12),
    Routing(2, "softmax", "ones"),
    Routing(2, "softmax", "renormalize", groups=3, top_groups=1),
    Routing(2, "sigmoid", "renormalize", groups=2, top_groups=1, group_score="top2"),
    Routing(4, "sigmoid", "renormalize", groups=6, top_groups=5, closed_as_zero=True),  # one closed: no equal scores
    Routing(2, "sigmoid", "renormalize", floor=3.0),
]


def session(model: ir.Model, library: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, library: Path, threads: int = 1, **inputs: Tensor) -> Tensor:
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return torch.from_numpy(np.asarray(session(model, library, threads).run(["y"], feeds)[0]))


def own(model: ir.Model) -> dict[str, str]:
    (fact,) = lower_experts(model, own=True)
    return fact


def routed_model(e: Experts, rule: Routing, bias: Tensor | None, selection: Tensor | None) -> ir.Model:
    model = moe_model(e, 2, rule, bias)
    if selection is not None:
        node = next(iter(model.graph))
        node.replace_input_with(3, add_initializer(model.graph, from_tensor(selection, "selection"), "selection"))
    return model


def test_it_has_every_function_of_the_dialect() -> None:
    assert sorted(FUNCTIONS) == sorted(ACTIVATIONS)


@pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule(cpu_kernels_file: Path, rule: Routing, biased: bool) -> None:
    e, g = Experts(biases=biased), torch.Generator().manual_seed(5)
    bias, selection = (torch.randn(6, generator=g) if biased else None for _ in range(2))
    model = routed_model(e, rule, bias, selection)
    assert own(model)["formulation"] == FORMULATION
    assert ops(model) == ["Moe"]
    opened = session(model, cpu_kernels_file)
    for count in (1, 7, 40):  # few tokens share the router's rows, many are split
        x = tokens(count)
        want = torch.ops.moec.moe(
            x, e.router, bias, selection, *e.tensors, **rule.arguments(), **e.activation.arguments()
        )
        assert error(torch.from_numpy(opened.run(["y"], {"x": x.numpy()})[0]), want) < LIMIT


def test_another_rule_is_seen(cpu_kernels_file: Path) -> None:
    e, x = Experts(), tokens(40)
    found = []
    for rule in RULES:
        model = routed_model(e, rule, None, None)
        own(model)
        found.append(run(model, cpu_kernels_file, x=x))
    same = {(0, 4)}  # shares of a softmax are a softmax of the chosen logits
    for i, one in enumerate(found):
        for j in range(i):
            assert (j, i) in same or error(one, found[j]) > 100 * LIMIT


@pytest.mark.parametrize("experts", [1, 6])
def test_what_a_rule_without_groups_says_of_them_counts_for_nothing(cpu_kernels_file: Path, experts: int) -> None:
    e, x = Experts(experts=experts), tokens(5)
    rule = Routing(1, "sigmoid", "scores", top_groups=4, group_score="top2")
    model = routed_model(e, rule, None, None)
    own(model)
    want = torch.ops.moec.moe(x, e.router, None, None, *e.tensors, **rule.arguments(), **e.activation.arguments())
    assert error(run(model, cpu_kernels_file, x=x), want) < LIMIT


def test_equal_scores_choose_the_first_and_nan_comes_before_all(cpu_kernels_file: Path) -> None:
    e, x = Experts(), tokens(3)
    e.router = torch.zeros_like(e.router)
    model = routed_model(e, Routing(2), None, None)
    own(model)
    want = sum(torch.ops.moec.experts(x, torch.full((3, 1), k), torch.full((3, 1), 0.5), *e.tensors) for k in (0, 1))
    assert error(run(model, cpu_kernels_file, x=x), want) < LIMIT  # type: ignore[arg-type]
    x[1, 3] = float("nan")
    found = run(model, cpu_kernels_file, x=x)
    assert found[1].isnan().all()
    assert error(found[[0, 2]], want[[0, 2]]) < LIMIT  # type: ignore[index]


@pytest.mark.parametrize("leading", [(1,), (7,), (2, 5), (0,), (2, 0), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("score_before", [False, True], ids=["", "score_before"])
def test_given_ids_and_weights(cpu_kernels_file: Path, leading: tuple[int, ...], score_before: bool) -> None:
    e, x, (ids, weights) = Experts(biases=True), tokens(*leading), choice(*leading)
    model = experts_model(e, x.dim(), 2, score_before)
    assert own(model)["why"].endswith("computes all experts")
    assert ops(model) == ["Experts"]
    got = run(model, cpu_kernels_file, x=x, ids=ids, weights=weights)
    rule = e.activation.arguments()
    want = torch.ops.moec.experts(x, ids, weights, *e.tensors, **rule, score_before=score_before)
    assert error(got, want) < LIMIT if x.numel() else got.shape == x.shape


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize(("biases", "score_before"), [(True, False), (False, True), (True, True)])
def test_what_weighs_nothing_is_not_computed(
    cpu_kernels_file: Path, top_k: int, biases: bool, score_before: bool
) -> None:
    e, x, (ids, weights) = Experts(biases=biases), tokens(9), choice(9, top_k=top_k)
    if top_k == 1:
        weights = torch.linspace(0.1, 1, 9)[:, None]
    weights[4] = 0.1  # all that this token has
    rule = {**e.activation.arguments(), "score_before": score_before}
    want = torch.ops.moec.experts(x, ids, weights.masked_fill(weights < 0.3, 0.0), *e.tensors, **rule)
    model = masked_model(e, top_k, score_before)
    own(model)
    opened = session(model, cpu_kernels_file)

    def given(x: Tensor, weights: Tensor) -> Tensor:
        feeds = {"x": x.numpy(), "ids": ids[: len(x)].numpy(), "weights": weights.numpy()}
        return torch.from_numpy(opened.run(["y"], feeds)[0])

    assert error(given(x, weights), want) < LIMIT
    assert error(torch.ops.moec.experts(x, ids, weights, *e.tensors, **rule), want) > 100 * LIMIT
    assert given(x[:0], weights[:0]).shape == x[:0].shape
    if not (biases and score_before):
        assert not given(x, weights * 0 + 0.1).any(), "nothing is chosen, and something comes out"
    x[4] = torch.nan
    got = given(x, weights)
    assert bool(got[4].isnan().any()) is (biases and score_before), "what was left out was computed"
    assert got[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_weights_of_zero_that_nobody_has_set_are_computed(cpu_kernels_file: Path) -> None:
    e, x, (ids, weights) = Experts(), tokens(4), choice(4)
    model = experts_model(e, 2, 2)
    own(model)
    x[0] = torch.nan
    assert run(model, cpu_kernels_file, x=x, ids=ids, weights=weights * 0)[0].isnan().all()


def test_threads_change_no_bit(cpu_kernels_file: Path) -> None:
    e = Experts(experts=6, hidden=256, inner=192)
    model = routed_model(e, Routing(2), None, None)
    own(model)
    for count in (1, 100):
        x = tokens(count, hidden=256)
        assert torch.equal(*(run(model, cpu_kernels_file, threads, x=x) for threads in (1, 3)))


def test_an_id_that_is_no_expert_ends_the_call_and_not_the_process(cpu_kernels_file: Path) -> None:
    e = Experts()
    model = experts_model(e, 2, 1)
    own(model)
    with pytest.raises(Exception, match="an id is no expert"):
        run(model, cpu_kernels_file, x=tokens(2), ids=torch.tensor([[0], [6]]), weights=torch.ones(2, 1))


def packed_model(bits: int, group: int, routed: bool = False) -> ir.Model:
    """x, and ids and weights where it is not routed, are inputs; both stacks are codes of all kinds with zero
    points."""
    g = torch.Generator().manual_seed(bits)
    e = Experts(hidden=128, inner=128)
    model = moe_model(e, 2, Routing(2)) if routed else experts_model(e, 2, 2)
    graph, node = model.graph, next(iter(model.graph))
    first = 4 if routed else 3
    for at, name, rows in ((first, "in", 256), (first + 1, "out", 128)):
        parts = (
            torch.randint(0, 256, (6, rows, 128 * bits // 8), generator=g, dtype=torch.uint8),
            torch.rand(6, rows, 128 // group, generator=g) / 2**bits,
            torch.randint(0, 2**bits, (6, rows, 128 // group), generator=g, dtype=torch.uint8),
        )
        values = [add_initializer(graph, from_tensor(t, f"{name}{n}"), f"{name}{n}") for n, t in enumerate(parts)]
        w = ir.node("Dequantize", values, {"bits": bits}, domain="moec", name=name)
        w.outputs[0].type = ir.TensorType(DTYPES[torch.float32])
        graph.insert_before(node, w)
        node.replace_input_with(at, w.outputs[0])
    return model


@pytest.mark.parametrize("bits, group", [(8, 32), (4, 32), (4, 64), (2, 64)])
def test_codes_are_read_as_they_are_stored(cpu_kernels_file: Path, bits: int, group: int) -> None:
    model = packed_model(bits, group)
    stored = {str(v.name): torch.from_numpy(v.const_value.numpy()) for v in model.graph.initializers.values()}
    fact = own(model)
    assert (fact["formulation"], fact["kernel"], ops(model)) == (FORMULATION, "Experts", ["Experts"])
    dense = [torch.ops.moec.dequantize(*(stored[f"{name}{n}"] for n in range(3)), bits=bits) for name in ("in", "out")]
    x, (ids, weights) = tokens(5, hidden=128), choice(5)
    got = run(model, cpu_kernels_file, x=x, ids=ids, weights=weights)
    assert error(got, torch.ops.moec.experts(x, ids, weights, *dense)) < LIMIT
    dense[1][int(ids[0, 0])] *= 1.01
    assert error(got, torch.ops.moec.experts(x, ids, weights, *dense)) > 100 * LIMIT


def test_the_operator_that_reads_codes_and_routes_is_named() -> None:
    model = packed_model(4, 32, routed=True)
    assert own(model)["kernel"] == "Moe" and ops(model) == ["Moe"]


@pytest.mark.parametrize(
    "model, why",
    [
        (lambda: experts_model(Experts(dtype=torch.float16), 2, 2), "float32 only"),
        (lambda: packed_model(4, 16), "multiples of 32, not of 16"),
    ],
    ids=["float16", "blocks"],
)
def test_what_it_does_not_take_falls_back_and_says_why(model: object, why: str) -> None:
    fact = own(model())  # type: ignore[operator]
    assert fact["formulation"] != FORMULATION
    assert fact["why"].startswith("moec's own kernel") and why in fact["why"]


def test_nothing_of_it_is_in_other_targets() -> None:
    model = moe_model(Experts(activation=Activation()), 2, Routing(2))
    lower_experts(model)
    assert OWN not in model.opset_imports and not any(node.domain == OWN for node in model.graph)
