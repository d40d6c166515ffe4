"""What carving each network of a model costs, in units that can be compared: what its error changes at the model's
end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from moec.execution.divergence import apart
from moec.execution.lockstep import OperatorCalls, joined, run_in_lockstep
from moec.experts.carved_place import finite
from moec.experts.carving import Carving, Cut, NotFiniteError
from moec.experts.dense_network import dense_of
from moec.experts.network_text import NetworkText
from moec.program.decoder_signature import LOGITS
from moec.program.program import Program
from moec.recognition.ffn import Ffn

_TINY = 1e-30


def cost_curves(
    program: Program, ffns: Sequence[Ffn], batches: Sequence[Mapping[str, Tensor]], how: Carving
) -> list[Tensor]:
    """For each dense network what it costs to carve it, by the number of experts a token, `[E]`.

    The squared error of a network, by that number, is measured on what the dense model brings to it, before anything is
    fitted anew. One point of it, the error with `how.active` experts, is then put into the dense model, network by
    network, and followed to the end on the text's first batch: as a KL divergence of the logits, in nats a token, else
    as the relative squared error of the first output.
    """
    curves, slips = _errors(program, ffns, batches, how)
    effects = _effects(program, ffns, batches[0], slips)
    at = how.active - 1
    return [c * (effect / max(float(c[at]), _TINY)) for c, effect in zip(curves, effects, strict=True)]


def _errors(
    program: Program, ffns: Sequence[Ffn], batches: Sequence[Mapping[str, Tensor]], how: Carving
) -> tuple[list[Tensor], list[Tensor]]:
    """Each network's squared error by the number of experts, `[E]`, and what `how.active` experts change for each token
    of the first batch, `[T, H]`."""
    entering = {node: ffn for ffn in ffns for node in ffn.nodes if ffn.x in node.all_input_nodes}
    found: dict[fx.Node, tuple[Tensor, Tensor]] = {}

    def visit(calls: OperatorCalls) -> None:
        ffn = entering.get(calls.node)
        if ffn is None or ffn.output in found:
            return
        values = calls.values(list(calls.node.args).index(ffn.x))
        with torch.inference_mode(False), finite(ffn):
            x = joined(values)
            cut = Cut(NetworkText(dense_of(ffn), x), replace(how, shared=how.candidates()[0]))
            found[ffn.output] = cut.curve(), cut.slip(x[: values[0].numel() // values[0].shape[-1]], how.active)

    run_in_lockstep(program, batches, visit)
    return [found[ffn.output][0] for ffn in ffns], [found[ffn.output][1] for ffn in ffns]


def _effects(
    program: Program, ffns: Sequence[Ffn], batch: Mapping[str, Tensor], slips: Sequence[Tensor]
) -> list[float]:
    """What each network's slip changes at the end: the model runs once for each of them, and once without, side by
    side. Raises M203 where that is not finite."""
    readers: dict[fx.Node, list[tuple[int, int]]] = {}
    for k, ffn in enumerate(ffns):
        for user in ffn.output.users:
            places = [at for at, value in enumerate(user.args) if value is ffn.output]
            readers.setdefault(user, []).extend((k, at) for at in places)

    def visit(calls: OperatorCalls) -> None:
        for k, at in readers.get(calls.node, ()):
            values = calls.values(at)
            values[k] = values[k] + slips[k].reshape(values[k].shape).to(values[k].dtype)
            calls.replace_each(at, values)

    *changed, whole = run_in_lockstep(program, [batch] * (len(ffns) + 1), visit)
    names = list(program.outputs)
    at = names.index(LOGITS) if LOGITS in names else 0
    found = [apart(whole[at], other[at], LOGITS in names) for other in changed]
    for ffn, effect in zip(ffns, found, strict=True):
        with finite(ffn):
            if not math.isfinite(effect):
                raise NotFiniteError("what the model says is not finite when a part of its neurons is left out there")
    return found
