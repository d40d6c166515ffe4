"""The account on a page."""

from __future__ import annotations

from moec.frontend.account import Account, LeftOut
from moec.report.account import account_tables


def test_what_is_left_out_stands_with_its_reason() -> None:
    left = (LeftOut("input", "labels", "only a loss needs it"),)
    account = Account("Model", "as config.json says (Model)", ("x",), 3, 3, left, ("adapter: LORA", "as drawn"))
    (_, model, _), (title, rows, columns) = account_tables(account.to_plain())
    assert ["tensors", "3 of 3 in the files"] in model and ["adapter", "LORA"] in model
    assert ["note", "as drawn"] in model
    assert (title, rows) == ("What the engine is without", [["input", "labels", "only a loss needs it"]])
    assert len(columns) == len(rows[0])


def test_nothing_left_out_and_no_account() -> None:
    assert [title for title, _, _ in account_tables(Account("Model").to_plain())] == ["The model"]
    assert account_tables({}) == []
