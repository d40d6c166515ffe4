"""A part that is not proven fails the whole."""

from __future__ import annotations

from moec.proof.checks.proven_parts import ProvenPart, ProvenParts


def test_every_part_counts() -> None:
    good, bad = ProvenPart("encoder", "equal"), ProvenPart("decoder", "", "differs in 'logits'", "M101", "report it")
    assert ProvenParts((good,)).ok and not ProvenParts((good, bad)).ok and not ProvenParts(()).ok
    error = ProvenParts((good, bad)).error()
    assert error is not None and error.where == "part decoder" and "logits" in error.what
    assert [f.ok for f in ProvenParts((good, bad)).figures()] == [True, False]
    assert not all(f.ok for f in ProvenParts(()).figures())


def test_a_manifest_holds_it() -> None:
    check = ProvenParts((ProvenPart("encoder", "equal"),))
    assert ProvenParts.from_dict(check.to_dict()) == check and "encoder: equal" in str(check)
