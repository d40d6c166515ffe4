"""From an `nn.Module` to a Program: torch.export, with what it asks for and in the form that it takes."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from moec.errors import MoecError
from moec.frontend.dimensions import dynamic_shapes, suggested_bounds
from moec.frontend.from_exported import Dynamic, from_exported, require_tensor
from moec.frontend.refusals import place_of, reason, way_out
from moec.frontend.rounded_sizes import rounded
from moec.program.program import META, Program, identifier
from moec.startup import late, swapped
from moec.weights.lazy import Weight


def capture(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | Sequence[Tensor],
    dynamic: Dynamic | None = None,
    *,
    weights: Mapping[str, Weight] | None = None,
    source: str | None = None,
) -> Program:
    """Capture a model as a Program with torch.export; the model is run only on shapes, never on data.

    Args:
        model: any `nn.Module` in eval mode (it is put there), with its weights in memory or on the meta device.
        inputs: sample inputs by name, or in the order of `forward`'s parameters. Sizes of dynamic dimensions should be
            2 or more and unlike the model's own sizes (torch.export specialises 0 and 1).
        dynamic: input name -> a name or None for each dimension, e.g. `{"input_ids": ("batch", "sequence")}`.
            Dimensions of equal names are equal.
        weights: lazy weights by parameter name, for a model on the meta device; others come from the model's own
            tensors.
        source: where the model came from, for reports.

    Raises:
        MoecError: M207 when torch.export cannot make one graph of it, with the reason.
    """
    model.eval()
    named, dynamic = named_inputs(model, inputs), dynamic or {}

    def program(strict: bool = False) -> Program:
        exported, name = export(model, named, dynamic, strict), source or type(model).__name__
        return from_exported(exported, weights=weights, dynamic=dynamic, source=name, inputs=named)

    with rounded() as sizes:
        found = program()
    if sizes and weights is None:
        with contextlib.suppress(MoecError):
            return min(program(strict=True), found, key=lambda p: len(p.conditions))
    return found


def named_inputs(model: nn.Module, inputs: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """Sample inputs by name; those in order are named after `forward`'s parameters. Raises M207 for one that is no
    tensor."""
    if not isinstance(inputs, Mapping):
        names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
        inputs = dict(zip(names, inputs, strict=False))
    for name, value in inputs.items():
        require_tensor(name, value)
    return dict(inputs)


def export(model: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic, strict: bool = False) -> ExportedProgram:
    """`torch.export.export` with named dynamic dimensions; inputs follow the model to the meta device.

    A model may bound a dimension (BERT's positions end at 512): then torch.export says which bound it needs, and gets
    it. With `strict` torch reads the model's bytecode, see `moec.frontend.rounded_sizes`. Raises M207 when the model
    cannot be captured as one graph; a refusal of moec's own within it stays what it is.
    """
    if any(t.device == META for t in (*model.parameters(), *model.buffers())):
        inputs = {name: t.to(META) for name, t in inputs.items()}
    inputs = {identifier(name): value for name, value in inputs.items()}
    dynamic = {identifier(name): shape for name, shape in dynamic.items()}
    found: dict[str, re.Match[str]] = {}
    while True:
        try:
            return _exported(model, dict(inputs), dynamic_shapes(inputs, dynamic, found), strict)
        except MoecError:
            raise
        except Exception as error:
            more = {name: bound for name, bound in suggested_bounds(error).items() if name not in found}
            if more:
                found |= more
                continue
            raise MoecError(
                "M207",
                f"torch.export cannot capture {type(model).__name__} as one graph: {type(error).__name__}: "
                f"{reason(error)[:400]}",
                place_of(error),
                way_out(error),
            ) from error


def _exported(model: nn.Module, inputs: dict[str, Tensor], shapes: Any, strict: bool) -> ExportedProgram:
    """Where a branch hangs on a size, torch follows the sample's and notes that it did: `moec.frontend.assumed`."""
    silent = contextlib.redirect_stderr(io.StringIO())  # where torch prints its whole partial graph
    with torch.no_grad(), silent, shapes_worked_out():
        return torch.export.export(
            model, (), inputs, dynamic_shapes=shapes, strict=strict, prefer_deferred_runtime_asserts_over_guards=True
        )


def import_export() -> None:
    """Import what torch.export traces with, and not the graph library of one of its partitioners. torch imports it by
    itself where symbolic sizes are made, a kept capture's too."""
    with late("networkx"):
        import torch.export._trace  # noqa: F401


@contextlib.contextmanager
def shapes_worked_out() -> Iterator[None]:
    """Within, torch works out the shape of each operator's output anew, not from its cache: with sizes that are symbols
    an entry takes longer to make and to check than the shape, and few are used twice. Nor does it note in which order
    each output lies in memory, which takes as long as the shape, and which nobody here asks of a node."""
    import_export()
    from torch.fx.experimental import proxy_tensor

    extract = "_extract_tensor_metadata"
    less = partial(getattr(proxy_tensor, extract), include_contiguity=False)
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False), swapped(proxy_tensor, extract, less):
        yield
