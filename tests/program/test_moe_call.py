"""Both mixture-of-experts operators read as one block, by name, in a graph and while it runs."""

from __future__ import annotations

import torch

from moec.dialect import Activation, Routing
from moec.execution.trace import trace
from moec.program.moe_call import EXPERTS, MOE, MoeCall, matrix_positions, moe_nodes
from moec.program.program import Program
from moec.weights.lazy import Weight
from tests.moe_module import EXPERTS as COUNT
from tests.moe_module import HIDDEN, MoeModel, source_of

INTERMEDIATE = 12


def two_blocks() -> Program:
    """A `moec::experts` and a `moec::moe` with biases."""
    return source_of(MoeModel((False, True))).capture()


def test_names_of_both_operators_mean_the_same_tensors() -> None:
    plain, fused = (MoeCall(node) for node in moe_nodes(two_blocks()))
    assert [plain.target, fused.target] == [EXPERTS, MOE] and [plain.fused, fused.fused] == [False, True]
    for index, call in enumerate((plain, fused)):
        assert (call.w_in.target, call.w_out.target) == (f"blocks.{index}.w_in", f"blocks.{index}.w_out")
        assert call.x.target == torch.ops.aten.layer_norm.default
        assert (call.experts, call.top_k, call.activation, call.score_before) == (COUNT, 2, Activation("silu"), False)


def test_what_the_other_operator_alone_has_is_none() -> None:
    plain, fused = (MoeCall(node) for node in moe_nodes(two_blocks()))
    assert (plain.router, plain.router_bias, plain.selection_bias, plain.routing) == (None,) * 4
    assert plain.ids is not None and plain.weights is not None and plain.b_in is None and plain.b_out is None
    assert (fused.ids, fused.weights, fused.router_bias, fused.selection_bias) == (None,) * 4
    assert fused.router.target == "blocks.1.router" and fused.routing == Routing(2)
    assert (fused.b_in.target, fused.b_out.target) == ("blocks.1.b_in", "blocks.1.b_out")


def test_tensors_with_a_row_an_expert_are_all_but_tokens_and_routes() -> None:
    plain, fused = (MoeCall(node) for node in moe_nodes(two_blocks()))
    assert list(plain.per_expert()) == ["w_in", "w_out"] == list(plain.expert_tensors())
    assert list(fused.per_expert()) == [
        "router_weight", "router_bias", "selection_bias", "w_in", "w_out", "b_in", "b_out",
    ]  # fmt: skip
    assert list(fused.expert_tensors()) == ["w_in", "w_out", "b_in", "b_out"]
    for call in (plain, fused):
        rows = {v.meta["val"].shape[0] for v in call.per_expert().values() if v is not None}
        assert rows == {COUNT}


def test_matrices_stand_where_their_positions_say() -> None:
    for node in moe_nodes(two_blocks()):
        first, second = (node.args[at] for at in matrix_positions(node.target))
        assert first.meta["val"].shape == (COUNT, 2 * INTERMEDIATE, HIDDEN)  # type: ignore[union-attr]
        assert second.meta["val"].shape == (COUNT, HIDDEN, INTERMEDIATE)  # type: ignore[union-attr]


def test_an_interpreters_values_have_the_same_names() -> None:
    program, found = two_blocks(), []

    def watch(node, value, args, kwargs):  # type: ignore[no-untyped-def]
        if node.target in MoeCall.operators:
            found.append((value, MoeCall.evaluated(node.target, args, kwargs)))

    trace(program, {"input_ids": torch.randint(0, 50, (2, 7))}, watch)
    (_, plain), (value, fused) = found
    assert plain.ids.dtype == torch.int64 and plain.weights.shape == plain.ids.shape and plain.top_k == 2
    assert isinstance(fused.w_in, Weight) and fused.experts == COUNT == plain.experts
    tensors = {name: v.load() if isinstance(v, Weight) else v for name, v in fused.tensors().items()}
    assert torch.allclose(torch.ops.moec.moe(**tensors, top_k=2), value, atol=1e-5)
    swapped = tensors | {"w_in": tensors["w_in"].flip(0)}
    assert not torch.allclose(torch.ops.moec.moe(**swapped, top_k=2), value, atol=1e-2), "another expert's matrix"


def test_a_block_reads_what_is_put_in_the_place_of_a_name() -> None:
    program, ids = two_blocks(), torch.randint(0, 50, (2, 7))
    before = program.run(input_ids=ids)["logits"]
    node = program.nodes(MOE)[0]
    call = MoeCall(node)
    router, others = call.router, [a for a in node.args if a is not call.router]
    with program.graph.inserting_before(node):
        turned = program.graph.call_function(torch.ops.aten.neg.default, (router,))
        turned.meta["val"] = -router.meta["val"]
    call.replace(router_weight=turned)
    program.finish()
    assert call.router is turned and [a for a in node.args if a is not turned] == others
    assert not torch.allclose(program.run(input_ids=ids)["logits"], before)
    call.replace(router_weight=router)
    program.finish()
    assert torch.equal(program.run(input_ids=ids)["logits"], before)
