"""Arguments of the dialect's operators by name: what stands at each position is said by the schema alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moec.dialect import Routing, pack
from moec.frontend.export import capture
from moec.program.dialect_call import (
    DEQUANTIZE,
    DEQUANTIZE_FLOAT,
    ROUTE,
    DequantizeCall,
    DequantizeFloatCall,
    DialectCall,
    RouteCall,
    in_order,
    position,
    positional_names,
)
from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from tests.moe_module import EXPERTS as COUNT
from tests.moe_module import HIDDEN


class Reader(nn.Module):
    """A function of x `[B, S, HIDDEN]`, captured with its buffers."""

    def __init__(self, function: Callable[..., Any], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, **dict(self.named_buffers()))


def program_of(function: Callable[..., Any], **buffers: Tensor) -> Program:
    return capture(Reader(function, **buffers), {"x": torch.randn(2, 5, HIDDEN)}, {"x": ("batch", "sequence")})


@pytest.mark.parametrize("operator", [ROUTE, EXPERTS, MOE, DEQUANTIZE, DEQUANTIZE_FLOAT])
def test_positions_are_those_at_which_the_operator_takes_its_tensors(operator: Any) -> None:
    names = positional_names(operator)
    assert [position(operator, name) for name in names] == list(range(len(names)))
    text = str(operator._schema).partition("(")[2].partition(", *")[0]  # as torch prints it
    assert [argument.split("=")[0].split()[-1] for argument in text.split(", ")] == list(names)
    with pytest.raises(ValueError):
        position(operator, "w_middle")


def test_arguments_in_order_end_with_the_last_that_is_given() -> None:
    assert in_order(EXPERTS, {"w_in": 4, "x": 1, "weights": 3, "ids": 2}) == (1, 2, 3, 4)
    assert in_order(DEQUANTIZE, {"packed": 1, "scale": 2, "zero": None}) == (1, 2, None)
    assert in_order(EXPERTS, {"x": 1, "b_out": 7}) == (1, None, None, None, None, None, 7)


def test_a_route_is_read_by_name() -> None:
    def with_bias(x: Tensor, b: Tensor) -> Tensor:
        weights, ids = torch.ops.moec.route(x, b, top_k=3, score="sigmoid")
        return weights + ids

    program = program_of(with_bias, b=torch.randn(HIDDEN))
    call = RouteCall(program.nodes(ROUTE)[0])
    assert call.logits.op == "placeholder" and call.bias.target == "b"
    assert call.routing == Routing(3, score="sigmoid") and set(call.tensors()) == {"logits", "bias"}
    bare = RouteCall(program_of(lambda x: sum(torch.ops.moec.route(x, top_k=2))).nodes(ROUTE)[0])
    assert bare.bias is None and set(bare.tensors()) == {"logits"}


def test_packed_weights_are_read_by_name() -> None:
    def product(x: Tensor, q: Tensor, s: Tensor) -> Tensor:
        return nn.functional.linear(x, torch.ops.moec.dequantize(q, s, None, bits=4))

    codes = pack(torch.randint(0, 16, (COUNT, HIDDEN)), 4)
    call = DequantizeCall(program_of(product, q=codes, s=torch.rand(COUNT, 1)).nodes(DEQUANTIZE)[0])
    assert (call.packed.target, call.scale.target, call.zero, call.bits) == ("q", "s", None, 4)

    def small(x: Tensor, q: Tensor, s: Tensor, o: Tensor) -> Tensor:
        return nn.functional.linear(x, torch.ops.moec.dequantize_float(q, s, o, format="nvfp4"))

    program = program_of(
        small, q=codes, s=torch.full((COUNT, HIDDEN // 16), 56, dtype=torch.uint8), o=torch.tensor(0.5)
    )
    floats = DequantizeFloatCall(program.nodes(DEQUANTIZE_FLOAT)[0])
    assert [floats.codes.target, floats.scale.target, floats.overall.target] == ["q", "s", "o"]
    assert floats.format == "nvfp4" and floats.dtype == torch.float32


def test_values_of_an_interpreter_are_read_by_the_same_names() -> None:
    logits = torch.randn(3, COUNT)
    call = RouteCall.evaluated(ROUTE, (logits,), {"top_k": 2, "bias": "given by keyword"})
    assert call.logits is logits and call.bias == "given by keyword" and call.node is None
    with pytest.raises(AssertionError, match="no graph"):
        call.replace(logits=logits)


def test_a_call_of_another_operator_is_refused() -> None:
    program = program_of(lambda x: sum(torch.ops.moec.route(x, top_k=2)))
    with pytest.raises(AssertionError, match="no operator of DequantizeCall"):
        DequantizeCall(program.nodes(ROUTE)[0])
    with pytest.raises(AssertionError):
        DialectCall(program.nodes(ROUTE)[0])


def test_a_replaced_argument_is_read_and_no_other_is_touched() -> None:
    program = program_of(lambda x: sum(torch.ops.moec.route(x * 2, top_k=2)))
    node = program.nodes(ROUTE)[0]
    before = program.run(x=(x := torch.randn(2, 5, HIDDEN)))
    with program.graph.inserting_before(node):
        negated = program.graph.call_function(torch.ops.aten.neg.default, (RouteCall(node).node_of("logits"),))
    call = RouteCall(node)
    call.replace(logits=negated)
    program.finish()
    assert call.logits is negated is node.args[0] and len(node.args) == 1 and node.kwargs["top_k"] == 2
    (output,) = program.run(x=x).values()
    want = sum(torch.ops.moec.route(x * -2, top_k=2))
    assert torch.equal(output, want) and not torch.equal(output, next(iter(before.values())))


def test_a_keyword_argument_that_is_a_tensor_is_replaced_where_it_stands() -> None:
    program = program_of(lambda x: sum(torch.ops.moec.route(x, top_k=2)))
    node = program.nodes(ROUTE)[0]
    logits = RouteCall(node).logits
    node.kwargs = {**node.kwargs, "bias": logits}
    assert RouteCall(node).bias is logits
    RouteCall(node).replace(bias=None)
    assert node.args == (logits, None) and "bias" not in node.kwargs
