"""Where a mixture in plain operators begins and ends in a graph: all that its experts compute leaves through one node,
and all that they and their router see comes in through another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor, fx

from moec.program.program import Program
from moec.recognition.hand_written import HandWritten
from moec.recognition.hand_written_capacity import Kept, find_kept
from moec.recognition.interpret import in_order, inputs_of
from moec.recognition.linear import Linear, find_linears, form_of, passes_through, value_of
from moec.recognition.matrices import LOOKUPS, constant_nodes
from moec.recognition.router_region import handed_on, logits_behind, scaled_linear_behind
from moec.recognition.token_wise import looks_beyond_a_token

_TRIED = 6  # places where a mixture may end


class NotAMixture(Exception):  # not an error: the operators stay as they are
    """Why a mixture in plain operators is not taken for a `moec::moe`; its text is for the user."""


@dataclass(frozen=True)
class MixtureRegion:
    """The nodes of a mixture in plain operators.

    Attributes:
        found: its experts. start: what all comes from. x: `start` or a view of it, the tokens `[..., H]`.
        output: what comes out, of x's form.
        logits: the linear layer of its router, its node behind a temperature.
        bias: a constant `[E]` that takes part in the choice, or None.
        nodes: from start, without it, to output, with it, in graph order; constants among them.
        inside: those between an expert's first and its last product.
        kept: where it says which choices its experts have room for; None where they have for all.
    """

    found: HandWritten
    start: fx.Node
    x: fx.Node
    output: fx.Node
    logits: Linear
    bias: fx.Node | None
    nodes: tuple[fx.Node, ...]
    inside: frozenset[fx.Node]
    kept: Kept | None = None

    @property
    def selection(self) -> fx.Node:
        """The node that chooses the experts."""
        return self.found.selection

    @property
    def experts(self) -> int:
        """E, how many there are to choose from."""
        return len(self.found.experts)

    @property
    def top_k(self) -> int:
        """K, how many are chosen."""
        return self.found.top_k

    @property
    def rule_nodes(self) -> tuple[fx.Node, ...]:
        """The nodes that may belong to the routing rule."""
        others = {*self.inside, *(self.kept.own if self.kept else ()), *_projection(self.logits)}
        return tuple(n for n in self.nodes if n not in others)


def find_regions(program: Program, found: HandWritten) -> list[MixtureRegion]:
    """Where a mixture may begin and end, the narrowest first: what it computes tells which is right.

    Raises NotAMixture with the reason where there is no such place.
    """
    if found.by_number:
        source = found.selection.args[0]
        raise NotAMixture(f"its experts are chosen by the numbers of {source}, which is no ranking of logits")
    if not 0 < found.top_k <= len(found.experts):
        raise NotAMixture("its graph does not say how many experts a token goes to")
    logits, nodes = _router(program, found), list(program.graph.nodes)
    graph = _Graph(nodes, constant_nodes(program))
    inside = graph.between({multiplying(product) for product in found.products})
    regions: list[MixtureRegion] = []
    ends = graph.ends(found.products)
    for end in ends:
        before = graph.before(end)
        if logits.node not in before:
            continue
        start = graph.start(before, [*found.products, logits.product])
        if start is not None and (pair := _ends(start, end)):
            try:
                own = in_order(program, {*graph.own(start, before), pair[1]})
                kept = find_kept(program, own, found.selection, len(found.experts))
                _refuse([n for n in own if kept is None or n not in kept.own], start)
                _refuse_line(kept, pair[0])
                bias = _bias(own, graph.fixed, found, logits, inside)
            except NotAMixture:
                if not regions:
                    raise
                break  # a wider place holds what is no part of a narrower one
            regions.append(MixtureRegion(found, start, *pair, logits, bias, own, inside, kept))
        if len(regions) == _TRIED:
            break
    if not regions:
        raise NotAMixture(_why(ends, found))
    return regions


def multiplying(product: fx.Node) -> fx.Node:
    """The operator that multiplies with a matrix that tokens look up."""
    if product.target in LOOKUPS and len(product.users) == 1:
        return next(iter(product.users))
    return product


def _why(ends: list[fx.Node], found: HandWritten) -> str:
    if not ends:
        return "what its experts compute is used in more than one place"
    return "its experts and its router read more than the tokens, or what comes out has another form than they"


def _router(program: Program, found: HandWritten) -> Linear:
    """The linear layer that the choice comes from."""
    node = logits_behind(found.selection)
    scaled = scaled_linear_behind(node, find_linears(program))
    if scaled is None:
        source = handed_on(node)[-1].name
        raise NotAMixture(f"its experts are chosen by {source}, which is no linear layer of the tokens")
    linear, factor = scaled
    if linear.weight.shape[0] != len(found.experts):
        raise NotAMixture(f"its router has {linear.weight.shape[0]} logits for {len(found.experts)} experts")
    return linear if factor == 1 else replace(linear, node=node)


def _projection(logits: Linear) -> set[fx.Node]:
    """The nodes from a router's product to its logits, a temperature among them."""
    found, todo = {logits.product}, [logits.node]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [n for n in node.all_input_nodes if n.op == "call_function"]
    return found


class _Graph:
    """A graph by places, and what reads the values of what."""

    def __init__(self, nodes: list[fx.Node], fixed: Mapping[fx.Node, None]) -> None:
        self.nodes, self.fixed = nodes, fixed
        self.place = {node: k for k, node in enumerate(nodes)}
        self.readers: dict[fx.Node, list[fx.Node]] = {}  # of what hangs on tokens
        for node in nodes:
            for source in inputs_of(node):
                if source not in fixed:
                    self.readers.setdefault(source, []).append(node)

    def ends(self, products: Set[fx.Node]) -> list[fx.Node]:
        """The nodes that all which was computed from the experts goes through, one after the other."""
        after = self._hanging_on(products)
        last, furthest, found = max(self.place[p] for p in products), -1, []  # the last reader of what was computed
        for place, node in enumerate(self.nodes[:-1]):
            if node in after:
                if last <= place and furthest <= place and isinstance(value_of(node), Tensor):
                    found.append(node)
                furthest = max([furthest, *(self.place[u] for u in node.users)])
        return found

    def before(self, end: fx.Node) -> set[fx.Node]:
        """What a node's value is computed from, itself included."""
        found = {end}
        for node in reversed(self.nodes[: self.place[end]]):
            if any(u in found for u in self.readers.get(node, [])):
                found.add(node)
        return found

    def start(self, before: Set[fx.Node], products: list[fx.Node]) -> fx.Node | None:
        """The last node before the first of these products that all of them come from."""
        furthest, found = -1, None
        for place, node in enumerate(self.nodes[: min(self.place[p] for p in products)]):
            if node in before:
                found = node if furthest <= place and isinstance(value_of(node), Tensor) else found
                furthest = max([furthest, *(self.place[u] for u in self.readers.get(node, []) if u in before)])
        return found

    def between(self, products: Set[fx.Node]) -> frozenset[fx.Node]:
        """The nodes that lead from one product to another, they themselves included."""
        back = set(products)
        for node in reversed(self.nodes):
            if any(u in back for u in node.users):
                back.add(node)
        return frozenset(self._hanging_on(products) & back)

    def own(self, start: fx.Node, before: Set[fx.Node]) -> set[fx.Node]:
        """The nodes between a start and an end, with the constants and sizes that they read."""
        found = {n for n in before if self.place[n] > self.place[start]}
        todo = [source for node in found for source in node.all_input_nodes]
        while todo:
            node = todo.pop()
            if node not in found and node.op != "placeholder" and (node in self.fixed or not inputs_of(node)):
                found.add(node)
                todo += node.all_input_nodes
        return found

    def _hanging_on(self, sources: Set[fx.Node]) -> set[fx.Node]:
        found = set(sources)
        for node in self.nodes:
            if any(n in found for n in node.all_input_nodes):
                found.add(node)
        return found


def _ends(start: fx.Node, end: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Input and output of one form, before or behind views that keep the last dimension."""
    inputs, outputs = [start, *filter(_is_view, start.users)], [end]
    while len(outputs[-1].users) == 1 and _is_view(reader := next(iter(outputs[-1].users))):
        outputs.append(reader)
    return next(((x, y) for y in outputs for x in inputs if form_of(x) == form_of(y)), None)


def _is_view(node: fx.Node) -> bool:
    return node.op == "call_function" and passes_through(node)


def _refuse(own: Sequence[fx.Node], start: fx.Node) -> None:
    """Raise NotAMixture where something else comes in, tokens are not treated each for itself, or something is rounded
    to fewer bits than they have: the dialect's operators would not."""
    if beyond := looks_beyond_a_token(own):
        raise NotAMixture(f"what it makes of a token hangs on others, or on where it stands: {beyond.name}")
    for node in own:
        value = node.meta.get("val")
        if node.op == "placeholder":
            raise NotAMixture(f"it reads the input {node.name}")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if value.dtype.itemsize < value_of(start).dtype.itemsize:
            raise NotAMixture(f"it rounds to {str(value.dtype).removeprefix('torch.')} in {node.name}")


def _refuse_line(kept: Kept | None, x: fx.Node) -> None:
    """Raise NotAMixture where tokens do not stand as they are in line for their experts."""
    if kept is not None and kept.whole != (value_of(x).dim() == 2):
        raise NotAMixture("its tokens are in line for experts in another form than they have")


def _bias(
    own: Sequence[fx.Node], fixed: Mapping[fx.Node, None], found: HandWritten, logits: Linear, inside: Set[fx.Node]
) -> fx.Node | None:
    """A constant of E numbers that something outside of the experts reads, and not the router's linear layer."""
    parts = {source for node in _projection(logits) for source in node.all_input_nodes}
    some = [
        n
        for n in own
        if n in fixed
        and n not in parts
        and isinstance(value_of(n), Tensor)
        and value_of(n).is_floating_point()
        and value_of(n).numel() == len(found.experts) > 1
        and any(u in own and u not in fixed and u not in inside for u in n.users)
    ]
    if len(some) > 1:
        raise NotAMixture(f"more than a correction bias takes part: {', '.join(n.name for n in some)}")
    return some[0] if some else None
