"""Dense feed-forward networks' places in a graph, and what takes one: a router, and experts that it weighs."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import fx

from moec.dialect import Routing
from moec.pipeline.passes import Context
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.ffn import Ffn, find_ffns

aten, ops = torch.ops.aten, torch.ops.moec


def own_networks(program: Program, context: Context) -> list[Ffn]:
    """The dense networks whose weights are their own, in graph order; `context.miss` says why others, and what looks
    like a network, are left alone."""
    ffns, misses = find_ffns(program)
    for miss in misses:
        context.miss(miss.node, miss.reason)
    read = Counter((ffn.w_in.origin, ffn.w_out.origin) for ffn in ffns)
    for ffn in ffns:
        if read[ffn.w_in.origin, ffn.w_out.origin] > 1:
            context.miss(ffn.output, "its weights are used in several places")
    return [ffn for ffn in ffns if read[ffn.w_in.origin, ffn.w_out.origin] == 1]


def put_experts(
    program: Program, ffn: Ffn, x: fx.Node, names: Sequence[str], routing: Routing, by: str
) -> tuple[fx.Node, fx.Node]:
    """Let a mixture compute what a network computed.

    Args:
        x: what the mixture reads: the network's input, or what stands in its place by now.
        names: of router, w_in, w_out, b_in and b_out among the program's weights; empty where there is no bias.
        routing: how experts are chosen. by: the pass's name.

    Returns:
        The node that holds the router's logits, and the one in the network's place.
    """
    with program.graph.inserting_before(ffn.output):
        router = program.read_weight(names[0])
        exact = program.weights[names[0]].dtype
        call = partial(call_like, program, ffn.output, by)
        rows = x if x.meta["val"].dtype == exact else call(aten.to.dtype, x, exact)
        logits = call(aten.linear.default, rows, router)
        # behind the router, so that what is fitted there is read by the same run
        w_in, w_out, b_in, b_out = [program.read_weight(n) if n else None for n in names[1:]]
        chosen = call(ops.route.default, logits, None, **routing.arguments())
        weight, ids = call(operator.getitem, chosen, 0), call(operator.getitem, chosen, 1)
        y = call(ops.experts.default, x, ids, weight, w_in, w_out, b_in, b_out, **ffn.activation.arguments())
    ffn.output.replace_all_uses_with(y)
    return logits, y
