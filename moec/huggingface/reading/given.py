"""Sample inputs that come with a transformers model in memory: they say which inputs its engine is to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from moec.errors import MoecError
from moec.frontend.module_source import parse_inputs
from moec.frontend.samples import guess_domain, guess_dynamic, shape_of
from moec.frontend.source import Domain, Opening
from moec.huggingface.reading.signature import Signature, signature_of
from moec.program.decoder_signature import IDS, MASK
from moec.program.program import Input
from moec.program.signature import sizes_of

_LEAST = 2  # torch.export takes 0 and 1 for constants


@dataclass(frozen=True)
class Given:
    """Samples by name, and the dynamic dimensions that the user named, if any."""

    samples: Mapping[str, Tensor]
    dynamic: Mapping[str, Sequence[str | int | None]] | None = None
    domains: Mapping[str, Domain] = field(default_factory=dict)

    @classmethod
    def of(cls, opening: Opening) -> Given | None:
        """What came with a model; None where nothing did. Raises M201 for a text that is no input."""
        if isinstance(opening.inputs, Mapping):
            return cls(opening.inputs, opening.dynamic)
        return cls(*parse_inputs(opening.specs)) if opening.specs else None

    @property
    def goes_with_a_cache(self) -> bool:
        """Whether this is how a decoder is called that keeps its cache itself: tokens and mask of any size."""
        named = [self.dynamic[name] for name in self.samples if name in (self.dynamic or {})] if self.dynamic else []
        return {IDS} <= set(self.samples) <= {IDS, MASK} and all(isinstance(d, str) for dims in named for d in dims)

    def signature(self, model: Any) -> Signature:
        """These inputs, as the model would have them itself where it knows them and the user said nothing else."""
        try:
            own = signature_of(model)
        except MoecError:  # another modality, which moec knows only from samples
            own = Signature((), {})
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
