"""Sample inputs that come with a transformers model: they say which inputs its engine is to have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.frontend.account import cut
from moec.frontend.domain import Domain
from moec.frontend.module_source import parse_inputs
from moec.frontend.samples import guess_domain, guess_dynamic, shape_of
from moec.frontend.source import Opening
from moec.huggingface.inputs.arguments import tensor_arguments
from moec.huggingface.inputs.signature import Signature, signature_of
from moec.program.decoder_signature import IDS, MASK
from moec.program.program import Input
from moec.program.signature import sizes_of
from moec.registry import did_you_mean

_LEAST = 2  # torch.export takes 0 and 1 for constants


@dataclass(frozen=True)
class Given:
    """Samples by name, and the dynamic dimensions that the user named, if any.

    Attributes:
        fixed: inputs that have one value for good.
    """

    samples: Mapping[str, Tensor]
    dynamic: Mapping[str, Sequence[str | int | None]] | None = None
    domains: Mapping[str, Domain] = field(default_factory=dict)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, opening: Opening) -> Given | None:
        """What came with a model; None where nothing did. Raises M201 for a text that is no input."""
        if isinstance(opening.inputs, Mapping):
            return cls(opening.inputs, opening.dynamic)
        if opening.dynamic:
            fix = "pass inputs={'name': tensor, …} with them, or write both as texts, name=dims:dtype"
            raise MoecError("M201", "dimensions are named, and there are no samples that have them", "dynamic", fix)
        values = [text for text in opening.specs if _is_value(text)]
        shapes = [text for text in opening.specs if not _is_value(text)]
        return cls(*parse_inputs(shapes), dict(map(_value, values))) if opening.specs else None

    @property
    def goes_with_a_cache(self) -> bool:
        """Whether this is how a decoder is called that keeps its cache itself: tokens and mask of any size."""
        named = [self.dynamic[name] for name in self.samples if name in (self.dynamic or {})] if self.dynamic else []
        text = {IDS} <= set(self.samples) <= {IDS, MASK} and not self.fixed
        return text and all(isinstance(d, str) for dims in named for d in dims)

    def signature(self, model: Any) -> Signature:
        """These inputs, as the model would have them itself where it knows them and the user said nothing else."""
        try:
            own = signature_of(model)
        except MoecError:  # another modality, which moec knows only from samples
            own = Signature((), {})
        return self._over(own, model)

    def beside(self, own: Signature, model: Any) -> Signature:
        """A model's own inputs, with these in their place or beside them.

        Raises M201 for a name that its forward does not have.
        """
        known = tensor_arguments(model)
        stranger = next((name for name in (*self.samples, *self.fixed) if name not in known), None)
        if stranger is not None:
            what = f"{type(model).__name__} takes no tensor {stranger!r}"
            raise MoecError("M201", what, "--input", did_you_mean(stranger, known, f"it takes {cut(known, 8)}"))
        ours = self._over(own, model)
        given = {i.name: i for i in ours.inputs}
        kept = tuple(given.pop(i.name, i) for i in own.inputs if i.name not in self.fixed)
        return replace(own, inputs=(*kept, *given.values()), domains={**own.domains, **ours.domains}, fixed=self.fixed)

    def _over(self, own: Signature, model: Any) -> Signature:
        shapes = {i.name: i.shape for i in own.inputs}
        dynamic = guess_dynamic(self.samples) if self.dynamic is None else self.dynamic
        inputs, domains = [], {}
        for name, sample in self.samples.items():
            shape = shape_of(sample, dynamic.get(name, ()))
            known = self.dynamic is None and len(shapes.get(name, ())) == sample.dim()
            inputs.append(Input(name, sample.dtype, shapes[name] if known else shape))
            domains[name] = own.domains.get(name) or self.domains.get(name) or guess_domain(name, sample)
        return Signature(tuple(inputs), domains)

    def sizes(self, inputs: Sequence[Input]) -> dict[str, int]:
        """Sizes of the dynamic dimensions that suit a capture."""
        ours = [i for i in inputs if i.name in self.samples]
        return {name: max(_LEAST, size) for name, size in sizes_of(ours, self.samples).items()}


def _is_value(text: str) -> bool:
    return text.partition("=")[2].lstrip().startswith("[")


def _value(text: str) -> tuple[str, Tensor]:
    """Name and value of `grid=[[1,4,6]]`: whole numbers, or floats. Raises M201."""
    name, _, said = text.partition("=")
    try:
        value = torch.tensor(json.loads(said))
        assert value.numel(), "it holds no numbers"
    except (ValueError, TypeError, AssertionError) as error:
        fix = f"write lists of numbers of one length each, e.g. {name}=[[1,4,6]]"
        raise MoecError("M201", f"cannot read the value {text!r}", "--input", fix) from error
    return name, value
