"""Every check is read back as it was written, and its verdict is its error's absence, never what the file says."""

from __future__ import annotations

import dataclasses
import json

import msgspec
import pytest

from moec.proof.cache_consistency import Consistency, Way
from moec.proof.checks.assumed import Assumed
from moec.proof.checks.bounds import RecordedBounds
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.capture import Capture
from moec.proof.checks.check import Check
from moec.proof.checks.company import Company
from moec.proof.checks.decided import DecidedTokens
from moec.proof.checks.experts import ExpertsReached
from moec.proof.checks.lowering import Lowering
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.own_text import OwnTextQuality
from moec.proof.checks.proven_parts import ProvenPart, ProvenParts
from moec.proof.checks.sight import Sight
from moec.proof.checks.sizes import SizesRun
from moec.proof.checks.text import TextQuality
from moec.proof.checks.values import Values
from moec.proof.checks.weights import QuantizedWeights
from moec.proof.compare import Comparison, OutputError
from moec.proof.coverage import Coverage, ExpertLoad
from moec.proof.decided_tokens import Decided
from moec.proof.evidence import RefusedSize
from moec.proof.exam import Exam
from moec.proof.own_text import OwnQuality
from moec.proof.quality import Quality
from moec.proof.recorded_bound import RecordedBound
from moec.proof.values import Finding
from moec.proof.verification import CHECKS
from moec.proof.weight_error import WeightError

ERROR = OutputError("logits", 40, 1e-6, 1e-7, 1e-5, 1e-6, 1.0, None, None, "")
COMPARISON = Comparison("eager", "engine", 1e-3, 2, (ERROR,))
FAR = dataclasses.replace(COMPARISON, outputs=(dataclasses.replace(ERROR, deviation=float("inf")),))
QUALITY = Quality(Exam("t.txt", max_kl=0.05), "ab", 7, 70, 20.0, 21.0, 0.04879, 0.02, 0.3, 1.5, 0.97)
REACHED = Coverage((ExpertLoad("moe", "blocks.0", (5, 1, 3)),), 2, 3, 9, 0)
MISSED = Coverage((ExpertLoad("moe", "blocks.0", (5, 0, 3)),), 2, 3, 8, 0)
NEAR = WeightError("w", 3, 4, 0.09, 0.09, 1.0)
OWN = OwnQuality("eager", "engine", 8, 200, 0.003, 0.1, 0.95, 0.02, 0.05, 0.9, "4 bits")
LOOSER = (RecordedBound("tolerance", "50", "0.001", "--tolerance 50"),)
RUN = ({"batch": 2},)
PAIRS: tuple[tuple[Check, Check], ...] = (
    (
        Assumed("engine", ("sequence <= 72",), (("ids", 0, 9),)),
        Assumed("engine", ("sequence <= 72",), (), ("0 <= ids <= 9",)),
    ),
    (Outputs(COMPARISON), Outputs(FAR)),
    (Lowering(COMPARISON), Lowering(FAR)),
    (Capture(COMPARISON), Capture(FAR)),
    (SizesRun("engine", RUN), SizesRun("engine", RUN, (RefusedSize({"batch": 3}, "why"),))),
    (DecidedTokens(Decided("float16", 0.005, 900, 1000)), DecidedTokens(Decided("float16", 0.005, 9, 1000))),
    (
        CacheConsistency(Consistency(1e-3, (Way("chunks", (2, 2), 1e-5),))),
        CacheConsistency(Consistency(1e-3, (Way("chunks", (2, 2), float("nan")),))),
    ),
    (Company(9, 0, 1e-6, 1e-3, "text 2 of 9"), Company(9, 0, float("inf"), 1e-3, "text 2 of 9")),
    (ExpertsReached(REACHED), ExpertsReached(MISSED)),
    (QuantizedWeights(1, (NEAR,)), QuantizedWeights(2, (NEAR, dataclasses.replace(NEAR, relative=0.5)))),
    (Values("model.onnx", 9, 99, 5), Values("model.onnx", 9, 99, 5, (Finding("w", "[0] is 1, not 2"),))),
    (OwnTextQuality(OWN), OwnTextQuality(OWN, dataclasses.replace(OWN, kl_mean=float("nan")))),
    (RecordedBounds(LOOSER), RecordedBounds(LOOSER, "it differs")),
    (
        ProvenParts((ProvenPart("encoder", "1e-6"),)),
        ProvenParts((ProvenPart("encoder", "1e-6"), ProvenPart("decoder", "", "it differs", "M101", "report this"))),
    ),
    (Sight(0.1, 1e-3), Sight(1e-3, 1e-3)),
    (TextQuality(QUALITY), TextQuality(dataclasses.replace(QUALITY, kl_mean=0.06))),
)


def test_every_check_is_here() -> None:
    assert {type(good) for good, _ in PAIRS} == set(CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize(("good", "bad"), PAIRS, ids=lambda c: c.name)
def test_read_back_with_a_verdict_of_its_own(good: Check, bad: Check) -> None:
    for check, ok in ((good, True), (bad, False)):
        data = json.loads(json.dumps(check.to_dict()))
        assert check.ok is ok and data["ok"] is ok
        again = type(check).from_dict({**data, "ok": not ok})
        assert again.ok is ok and type(again) is type(check)
        assert all(f.ok is not False for f in check.figures()) is ok, "the table fails where the check does"
        assert str(check) and check.title
    assert good.error() is None and (error := bad.error()) is not None and error.exit_code == 1 and error.fix


@pytest.mark.parametrize(("good", "bad"), PAIRS, ids=lambda c: c.name)
def test_another_form_is_refused(good: Check, bad: Check) -> None:
    with pytest.raises(msgspec.ValidationError):
        type(good).from_dict({next(f.name for f in dataclasses.fields(good)): 3})  # type: ignore[arg-type]
