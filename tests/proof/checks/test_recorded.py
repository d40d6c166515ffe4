"""An engine can be read without the package of a metric; what it recorded counts, and is passed on as it was."""

from __future__ import annotations

from moec.proof.checks.recorded import RecordedCheck
from moec.proof.verification import Verification

ENTRY = {"ok": True, "share": 0.93}


def test_it_is_shown_and_passed_on() -> None:
    proof = Verification.from_dict({"seed": 0, "reference": "full", "checks": {"horoscope": ENTRY}})
    (check,) = proof.checks
    assert isinstance(check, RecordedCheck) and check.ok and check.name == "horoscope" and "not here" in str(check)
    assert proof.to_dict()["checks"] == {"horoscope": ENTRY} and check.figures()[0].values == {"share": "0.93"}


def test_a_failure_stays_one() -> None:
    for entry in ({**ENTRY, "ok": False}, {"share": 0.93}, {"ok": "yes"}):
        check = RecordedCheck.of("horoscope", entry)
        assert not check.ok and not check.figures()[0].ok
        assert (error := check.error()) is not None and error.code == "M101"
