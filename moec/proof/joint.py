"""What the proofs of an engine's parts say of all of them together, and texts that all of them write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.execution.parts import PartsEngine, PartsText
from moec.frontend.source import Source
from moec.program.decoder_signature import LOGITS
from moec.proof.checks.check import Check
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.proven_parts import ProvenPart, ProvenParts
from moec.proof.compare import Comparison, Tolerance
from moec.proof.verification import Verification

ALLOWED_BY_ALL = "what all parts may take"


@dataclass(frozen=True)
class Joint:
    """Parts that are proven alone, and what is to be shown of all of them together.

    Attributes:
        source: the untouched model, whole.
        proofs: of each part alone, by its name.
        precision: that all compute in.
        seed: of the inputs.
        target, ran_on: see `Verification`.
        programs: gives the parts' own programs in PyTorch as one engine; asked where passes change numbers, and a text
            differs when it is cut.
    """

    source: Source
    proofs: Mapping[str, Verification]
    precision: torch.dtype
    seed: int
    target: str = ""
    ran_on: str = ""
    programs: Callable[[], PartsEngine] | None = None

    @property
    def tolerance(self) -> Tolerance:
        """What the outputs of all together may differ by."""
        return joint_tolerance([found.comparison for found in outputs_alone(self.proofs)])

    @property
    def approximate(self) -> bool:
        """Whether passes change numbers in a part."""
        return any(found.approximate for found in outputs_alone(self.proofs))

    def bound(self, outputs: Outputs) -> float:
        """What a text may differ by when it is cut."""
        return max(Tolerance.of(self.precision).deviation, outputs.comparison.tolerance or 0.0)

    def proof(self, *checks: Check) -> Verification:
        """The proof of all parts, with theirs and these among its checks."""
        return Verification((proven_parts(self.proofs), *checks), self.seed, "full", self.target, self.ran_on)


def called(text: PartsText, ids: Tensor, steps: Sequence[int]) -> Tensor:
    """Logits `[batch, sequence, vocabulary]` of tokens that come in these steps, in float64."""
    parts = ids.split([*steps], 1)  # type: ignore[no-untyped-call]
    return torch.cat([text.advance(part)[LOGITS].double() for part in parts], 1)


def written(text: PartsText, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens after a start, that among them, and the logits of every step, in float64."""
    ids, found = [start], list[Tensor]()
    for _ in range(steps):
        found.append(text.advance(ids[-1])[LOGITS].double())
        ids.append(found[-1][:, -1:].argmax(-1))
    return torch.cat(ids[:-1], 1), torch.cat(found, 1)


def proven_parts(proofs: Mapping[str, Verification]) -> ProvenParts:
    """What the proofs of the parts, by name, found."""
    return ProvenParts(tuple(_part(name, proof) for name, proof in proofs.items()))


def outputs_alone(proofs: Mapping[str, Verification]) -> list[Outputs]:
    """How far the outputs of each part are from the untouched model's."""
    return [found for proof in proofs.values() if (found := proof.find(Outputs))]


def joint_tolerance(alone: Sequence[Comparison]) -> Tolerance:
    """What all together may differ in: what each may; of budgets for approximate passes, what all may, since a part
    reads what another says."""
    if all(c.tolerance is not None and c.max_rms is None for c in alone):
        return Tolerance(max((c.tolerance or 0.0 for c in alone), default=0.0))
    return Tolerance(rms=sum(c.max_rms or c.tolerance or 0.0 for c in alone), why=ALLOWED_BY_ALL)


def _part(name: str, proof: Verification) -> ProvenPart:
    """What the proof of a part found."""
    said, error = "; ".join([*proof.short, *filter(None, [proof.limits])]), proof.error
    if proof.ok:
        return ProvenPart(name, said)
    return ProvenPart(name, said, *((error.what, error.code, error.fix) if error else ("nothing was checked",)))
