"""The weights of a network that was cut: lazy, so that a large model's matrices are put in another order when they are
written."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.experts.carving import Carved, Carving
from moec.recognition.ffn import Ffn
from moec.weights import lazy as weights
from moec.weights.lazy import Weight


def placeholders(ffn: Ffn, how: Carving) -> dict[str, Weight]:
    """Zeros in the form of what `carved_weights` gives."""
    experts = how.experts
    size, rows = ffn.intermediate // experts, ffn.activation.rows_per_neuron
    forms: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "router.weight": ((experts, ffn.hidden), torch.float32),
        "router.bias": ((experts,), torch.float32),
        "experts.w_in": ((experts, rows * size, ffn.hidden), ffn.w_in.dtype),
        "experts.w_out": ((experts, ffn.hidden, size), ffn.w_out.dtype),
        "experts.b_out": ((experts, ffn.hidden), ffn.w_out.dtype),
        "experts.constant": ((ffn.hidden,), ffn.w_out.dtype),
    }
    if how.router == "analytical" and ffn.activation.gated:
        forms["router.up"] = forms["router.weight"]
    if ffn.b_in is not None:
        forms["experts.b_in"] = ((experts, rows * size), ffn.b_in.dtype)
    return {name: weights.zeros(shape, dtype) for name, (shape, dtype) in forms.items()}


def carved_weights(ffn: Ffn, carved: Carved, how: str) -> dict[str, Weight]:
    """By the names of `placeholders`: a router, the neurons of each expert, and what makes up for those that are left
    out. An expert gives up its mean, which is added for all of them at the end, beside the network's own bias. A last
    matrix that was fitted anew is held in memory; all else is read from the dense one when it is written.

    Args:
        how: the text of the origins: equal ones are to mean equal contents.
    """
    order = torch.cat(carved.groups).tolist()
    count, rows = len(carved.groups), ffn.activation.rows_per_neuron
    label = f"{how}, {ffn.w_in.origin}"
    places = [part * ffn.intermediate + n for group in carved.groups for part in range(rows) for n in group.tolist()]
    router, output = carved.router, carved.output
    constant = output.constant.double()
    if ffn.b_out is not None:
        constant = constant + ffn.b_out.load().double()
    made = {
        "router.weight": _new(router.weight, torch.float32, f"router of {label}"),
        "router.bias": _new(router.bias, torch.float32, f"router's bias of {label}"),
        "experts.w_in": weights.unmerged(weights.take(ffn.w_in, places), count),
        "experts.w_out": _fitted(ffn, carved, order, label) if carved.fitted else _columns(ffn.w_out, order, count),
        "experts.b_out": _new(output.b_out, ffn.w_out.dtype, f"means of {label}"),
        "experts.constant": _new(constant, ffn.w_out.dtype, f"sum of the means of {label}"),
    }
    if router.up is not None:
        made["router.up"] = _new(router.up, torch.float32, f"router's second matrix of {label}")
    if ffn.b_in is not None:
        made["experts.b_in"] = weights.unmerged(weights.take(ffn.b_in, places), count)
    return made


def _columns(matrix: Weight, order: list[int], count: int) -> Weight:
    """`[H, I]` as `[E, H, I/E]`, columns in this order."""
    taken = weights.rowwise(f"columns{order}", lambda t: t[:, order].unflatten(1, (count, -1)).contiguous(), matrix)
    return weights.transpose(taken, 0, 1)


def _fitted(ffn: Ffn, carved: Carved, order: list[int], label: str) -> Weight:
    """The new last matrix, expert by expert, `[E, H, I/E]`."""
    rows, columns = carved.output.w_out.shape
    count = len(carved.groups)
    parts = carved.output.w_out[:, order].reshape(rows, count, columns // count).transpose(0, 1)
    return _new(parts, ffn.w_out.dtype, f"last matrix fitted anew of {label}")


def _new(value: Tensor, dtype: torch.dtype, origin: str) -> Weight:
    return weights.from_tensor(value.to(dtype).contiguous().clone(), origin)
