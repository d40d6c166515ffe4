"""Every error says what, where and how to fix it; the exit status follows from its code."""

from __future__ import annotations

import pickle

import pytest

from moec.errors import CODES, EXIT_CODES, MoecError, reason_of


def test_three_lines_and_plain_data() -> None:
    error = MoecError("M103", "fuse-moe changed nothing", "the pipeline", "leave it out")
    assert str(error).splitlines() == [
        "error[M103]: fuse-moe changed nothing",
        "  where: the pipeline",
        "  fix:   leave it out",
    ]
    assert error.to_dict() == {
        "code": "M103",
        "what": "fuse-moe changed nothing",
        "where": "the pipeline",
        "fix": "leave it out",
        "exit_code": 1,
    }


@pytest.mark.parametrize(("code", "status"), [("M101", 1), ("M204", 2), ("M301", 3), ("M799", 70)])
def test_exit_status(code: str, status: int) -> None:
    assert MoecError(code, "", "", "").exit_code == status


def test_every_code_has_a_status_and_a_sentence() -> None:
    assert all(code[:2] in EXIT_CODES and text.endswith(".") for code, text in CODES.items())


def test_an_unknown_code_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        MoecError("M998", "", "", "")


def test_the_reason_of_a_foreign_error_is_its_first_line() -> None:
    assert reason_of(ValueError("no magic\nand more")) == "no magic"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError(250 * "x"))) == 200 and len(reason_of(ValueError(250 * "x"), None)) == 250


def test_an_error_travels_whole() -> None:
    error = MoecError("M105", "what", "where", "fix")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is MoecError and found.to_dict() == error.to_dict() and str(found) == str(error)
