"""What the proofs of an engine's parts say of all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moec.proof.checks.outputs import Outputs
from moec.proof.checks.proven_parts import ProvenPart, ProvenParts
from moec.proof.compare import Comparison, Tolerance
from moec.proof.verification import Verification

ALLOWED_BY_ALL = "what all parts may take"


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
