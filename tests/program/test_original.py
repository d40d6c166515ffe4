"""What a captured model was beside what it computes."""

from __future__ import annotations

from copy import deepcopy

import torch

from moec.program.original import Original, OutputForm, Place


def test_a_form_puts_outputs_where_the_model_has_them_and_leaves_the_rest() -> None:
    form = OutputForm.of({"a": (Place("x"), None, 3), "b": [Place("y")]})
    x, y = torch.ones(1), torch.zeros(2)
    found = form.filled({"y": y, "x": x})
    assert found["a"][0] is x and found["a"][1:] == (None, 3) and found["b"][0] is y


def test_what_a_file_can_hold_comes_back_and_a_copy_is_the_same() -> None:
    original = Original(fixed=frozenset({"b", "a"}), loss="next token", router_aux_loss_coef=0.5, source=object())
    read = Original.of_plain(original.to_plain())
    assert (read.fixed, read.loss, read.router_aux_loss_coef, read.source) == ({"a", "b"}, "next token", 0.5, None)
    assert Original.of_plain({}) == Original() and deepcopy(original) is original
