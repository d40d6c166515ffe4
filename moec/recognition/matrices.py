"""The matrices of a graph: weights, or expressions of weights alone, that a product reads."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from moec.program.dialect_call import position
from moec.program.moe_call import EXPERTS, MATRICES, MOE
from moec.program.program import Program
from moec.recognition.linear import value_of

aten = torch.ops.aten
_BATCHED = (
    aten.bmm.default, aten.baddbmm.default, aten.matmul.default, aten.mm.default, aten._grouped_mm.default,
)  # fmt: skip
_PRODUCTS: dict[Any, tuple[int, ...]] = {  # operator -> at which positions it multiplies by a matrix
    aten.linear.default: (1,),
    aten._grouped_mm.default: (1,),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    **dict.fromkeys((aten.mm.default, aten.matmul.default, aten.bmm.default), (0, 1)),
    **dict.fromkeys(
        (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default, aten.conv1d.padding,
         aten.conv2d.padding, aten.conv3d.padding), (1,),
    ),
    **{op: tuple(position(op, name) for name in MATRICES) for op in (EXPERTS, MOE)},
}  # fmt: skip
LOOKUPS = (aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.embedding.default)
_OF_SIZES = (  # operators that read the sizes of a tensor and none of its values
    aten.sym_size.int, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
)  # fmt: skip
_STACKS = (aten.stack.default, aten.cat.default)


@dataclass(frozen=True)
class Matrix:
    """One matrix, or a stack of them that is read as one.

    Attributes:
        node: what yields it: a weight, or an expression of weights. name: of the weight, as the model calls it.
        parts: names of the matrices of a stack along its leading dimension; empty for a single one.
        products: the operators that read it.
    """

    node: fx.Node
    name: str
    parts: tuple[str, ...]
    products: tuple[fx.Node, ...] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each matrix in it."""
        return self.parts or (self.name,)


def find_matrices(program: Program) -> list[Matrix]:
    """Every matrix of floating-point numbers that a product multiplies by, in graph order; no tables and no vectors."""
    fixed = constant_nodes(program)
    found = [(node, tuple(u for u in node.users if u not in fixed and _multiplies(u, node))) for node in fixed]
    return [Matrix(node, weight_name(node), _parts(node, products), products) for node, products in found if products]


def constant_nodes(program: Program) -> dict[fx.Node, None]:
    """The nodes that hang on weights alone, in graph order."""
    fixed: dict[fx.Node, None] = {}
    for node in program.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and sources and all(s in fixed for s in sources)):
            fixed[node] = None
    return fixed


def hangs_on_inputs(program: Program) -> set[fx.Node]:
    """The nodes whose values hang on those of the inputs, and not on their sizes alone."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" or (node.target not in _OF_SIZES and found.intersection(node.all_input_nodes)):
            found.add(node)
    return found


def weight_name(node: fx.Node) -> str:
    """What the model calls a matrix: its parameter's name, with the place where one of a stack is taken out of it."""
    if node.op == "get_attr":
        return str(node.target)
    first = node.all_input_nodes[0]
    if node.target is aten.select.int and node.args[1] == 0:
        return f"{weight_name(first)}.{node.args[2]}"
    if node.target is operator.getitem and first.target is aten.unbind.int:
        return f"{weight_name(first.all_input_nodes[0])}.{node.args[1]}"
    return weight_name(first)


def _multiplies(node: fx.Node, matrix: fx.Node) -> bool:
    value = matrix.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() < 2:
        return False
    if node.target is aten.einsum.default:
        return True
    if node.target in LOOKUPS:
        return value.dim() > 2 and node.args[0] is matrix  # a table of matrices: weights that tokens choose
    return any(len(node.args) > i and node.args[i] is matrix for i in _PRODUCTS.get(node.target, ()))


def _parts(node: fx.Node, products: tuple[fx.Node, ...]) -> tuple[str, ...]:
    value = value_of(node)
    if value.dim() < 3 or not all(_one_by_one(product, node) for product in products):
        return ()
    if node.target in _STACKS and len(node.all_input_nodes) == value.shape[0]:
        return tuple(weight_name(part) for part in node.all_input_nodes)
    return tuple(f"{weight_name(node)}.{k}" for k in range(int(value.shape[0])))


def _one_by_one(product: fx.Node, matrix: fx.Node) -> bool:
    """Whether a product takes a stack's matrices each for itself."""
    if product.target is aten.einsum.default:
        return _kept_apart(product, matrix)
    return product.target in (*_BATCHED, *LOOKUPS, EXPERTS, MOE)


def _kept_apart(product: fx.Node, matrix: fx.Node) -> bool:
    """Whether the leading letter of a matrix is a batch of an einsum: it stands in the result, or a third operand
    weighs what it sums."""
    equation, operands = _equation(product)
    terms, _, result = equation.replace(" ", "").partition("->")
    letters = terms.split(",")[operands.index(matrix)]
    return letters[0] in result or len(operands) > 2


def _equation(product: fx.Node) -> tuple[str, list[Any]]:
    equation, operands = product.args[:2]
    return str(equation), list(operands)  # type: ignore[arg-type]
