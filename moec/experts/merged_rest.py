"""What stands outside of experts, attention, norms and embeddings, made one out of several models'.

`base` takes it from the base. `average` is the mean of all. `regression` (RegMean, arXiv 2212.09849) solves for each
matrix of a linear layer, and for each embedding, what is nearest to what every model's own says of that model's own
text, in closed form; norms and biases are averaged. Weights that are equal in all models stay as they are in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from moec.execution.divergence import apart
from moec.execution.lockstep import OperatorCalls, joined, run_in_lockstep
from moec.execution.streaming import StreamingEngine
from moec.experts.merged_sources import MergeSource
from moec.program.decoder_signature import LOGITS
from moec.program.program import Program
from moec.recognition.linear import find_linears
from moec.weights import lazy as weights
from moec.weights.difference import first_difference
from moec.weights.lazy import Weight

WAYS = ("base", "average", "regression")
_RIDGE = 1e-3  # of the mean squared activation
_UNSEEN = 0.1  # times that a token is taken to be in every text

Rest = dict[str, Weight]


def rest_of(base: Program, sources: Sequence[MergeSource], names: Iterable[str], way: str) -> Rest:
    """The weights of these names, made one.

    Args:
        base: their names, and the graph that all share. way: one of `WAYS`.
    """
    owned = [n for n in names if base.weights[n].dtype.is_floating_point]
    if way == "base":
        return {}
    found, done = Rest(), dict[int, Weight]()
    solved = _regression(base, sources, owned) if way == "regression" else {}
    for name in owned:
        own = [s.program.weights[name] for s in sources]
        key = id(base.weights[name])  # of tied weights one is made
        done[key] = done.get(key) or (own[0] if _same(own) else solved.get(name) or _mean(own))
        found[name] = done[key]
    return found


def _same(own: Sequence[Weight]) -> bool:
    return all(first_difference(own[0], other) is None for other in own[1:])


def _mean(own: Sequence[Weight]) -> Weight:
    def mean(*values: Tensor) -> Tensor:
        return torch.stack([v.double() for v in values]).mean(0).to(values[0].dtype)

    return weights.rowwise("mean", mean, *own) if own[0].shape else weights.whole("mean", mean, *own)


# ---------------------------------------------------------------------- regression
@dataclass(frozen=True)
class _Reader:
    """An operator that alone reads a matrix: a linear layer, or an embedding's table.

    Attributes:
        name: of the matrix among the weights. node: of the operator. place: of what it reads among its arguments.
        key: of that: layers that read the same value share its moments. table: whether it looks rows up.
    """

    name: str
    node: str
    place: int
    key: str
    table: bool


def _regression(base: Program, sources: Sequence[MergeSource], names: Sequence[str]) -> Rest:
    """For each matrix W that one operator reads, the solution of sum over models of |X (W - W_s)|^2. What a table reads
    are tokens, so that each row is a mean by how often a text has the token."""
    readers = [r for r in _readers(base, names) if not _same([s.program.weights[r.name] for s in sources])]
    moments = [_moments(source, readers, base) for source in sources]
    found = Rest()
    for reader in readers:
        own = [source.program.weights[reader.name] for source in sources]
        solve = _counted if reader.table else _solved
        value = solve([m[reader.key] for m in moments], [w.load() for w in own])
        found[reader.name] = weights.from_tensor(value, f"regression({', '.join(w.origin for w in own)})")
    return found


def _readers(base: Program, names: Sequence[str]) -> list[_Reader]:
    """Those of these matrices that are stored as they are read. Of one that is both table and head, the table counts:
    on a trained model it lost less."""
    found: dict[str, _Reader] = {}
    tables = [n for n in base.nodes(torch.ops.aten.embedding.default) if isinstance(n.args[0], fx.Node)]
    for node in tables:
        found[_stored(node.args[0])] = _Reader(_stored(node.args[0]), node.name, 1, f"tokens of {node.args[1]}", True)
    tied = {id(base.weights[name]) for name in found if name in base.weights}
    for linear in find_linears(base).values():
        name, node = _stored(linear.product.args[1]), linear.product
        plain = name in base.weights and base.weights[name] is linear.weight and id(linear.weight) not in tied
        if plain and node.target == torch.ops.aten.linear.default:
            found[name] = _Reader(name, node.name, 0, linear.x.name, False)
    return [reader for name, reader in found.items() if name in names]


def _stored(node: Any) -> str:
    """The name of the weight that a node is, empty where it is something else."""
    alone = isinstance(node, fx.Node) and node.op == "get_attr"
    return str(node.target) if alone else ""


def _moments(source: MergeSource, readers: Sequence[_Reader], base: Program) -> dict[str, Tensor]:
    """Of what the model's own text brings: the mean of x x^T, `[in, in]` in float64, or of each token its share."""
    wanted = {reader.node: reader for reader in readers}
    found: dict[str, Tensor] = {}

    def visit(calls: OperatorCalls) -> None:
        reader = wanted.get(calls.node.name)
        if reader is None or reader.key in found:
            return
        values = calls.values(reader.place)
        if reader.table:
            tokens = torch.cat([v.flatten() for v in values])
            found[reader.key] = torch.bincount(tokens, minlength=base.weights[reader.name].shape[0]).double()
        else:
            rows = joined(values).double()
            found[reader.key] = rows.T @ rows / len(rows)

    last = next((n for n in reversed(source.program.graph.nodes) if n.name in wanted), None)
    if last is not None:
        run_in_lockstep(source.program, source.text, visit, until=last)
    return found


def _solved(moments: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """`[out, in]`, drawn to the mean where texts say nothing."""
    total = torch.stack([*moments]).sum(0)
    total.diagonal().add_(max(_RIDGE * float(total.diagonal().mean()), 1e-30))
    mean = torch.stack([w.double() for w in own]).mean(0)
    missing = torch.stack([m @ (w.double() - mean).T for m, w in zip(moments, own, strict=True)]).sum(0)
    return (mean + torch.linalg.solve(total, missing).T).to(own[0].dtype).contiguous()


def _counted(counts: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """`[tokens, H]`, the mean for tokens that no text has."""
    shares = torch.stack([*counts]) + _UNSEEN
    shares = shares / shares.sum(0)
    return torch.stack([s[:, None] * w.double() for s, w in zip(shares, own, strict=True)]).sum(0).to(own[0].dtype)


# ---------------------------------------------------------------------- which is better
def departures(ways: Mapping[str, Rest], sources: Sequence[MergeSource], own: Sequence[Rest]) -> dict[str, list[float]]:
    """How far each model is from itself with another rest, its own networks kept, on its held-out text: the mean KL
    divergence of a language model in nats a token, of any other the squared error of its first output in units of its
    mean square.

    Args:
        ways: the rests by name. own: for each source, its weights inside of networks, which stay.

    Returns:
        For each way a number a source.
    """
    found: dict[str, list[float]] = {way: [] for way in ways}
    for source, kept in zip(sources, own, strict=True):
        for way, figure in _from_itself(source, {way: {**rest, **kept} for way, rest in ways.items()}).items():
            found[way].append(figure)
    return found


def _from_itself(source: MergeSource, ways: Mapping[str, Rest]) -> dict[str, float]:
    """How far one model is from itself with other weights, by the names of these."""
    itself, others = StreamingEngine(source.program), {way: _with(source.program, own) for way, own in ways.items()}
    totals = dict.fromkeys(ways, 0.0)
    for sample in source.held_out:
        wanted = itself.run(sample)
        name = LOGITS if LOGITS in wanted else next(iter(wanted))
        for way, other in others.items():
            totals[way] += apart(wanted[name], other.run(sample)[name], name == LOGITS)
    return {way: total / len(source.held_out) for way, total in totals.items()}


def _with(program: Program, own: Rest) -> StreamingEngine:
    other = program.clone()
    other.weights.update(own)
    return StreamingEngine(other)
