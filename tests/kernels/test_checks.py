"""Bad input is a clear error before anything is launched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from moec.dialect import Activation, Routing
from moec.errors import MoecError
from moec.kernels import checks, launch
from moec.kernels.checks import check_experts, check_ids, check_route, check_router
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import recording
from tests.kernels.accuracy import Problem, problem


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks as the interpreter has them, where the CPU is allowed; nothing is launched."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def packed(rows: int = 48, group: int = 8, bits: int = 4) -> ExpertCodes:
    return ExpertCodes(
        torch.zeros(6, rows, 40 * bits // 8, dtype=torch.uint8), torch.ones(6, rows, 40 // group), bits=bits
    )


def refused(given: Problem, rule: Activation = Activation()) -> str:  # noqa: B008  # immutable
    with pytest.raises(MoecError) as caught:
        launch.experts(*given.tensors(), rule=rule)
    assert caught.value.code == "M212"
    return caught.value.what


def test_a_tensor_on_the_cpu_is_refused() -> None:
    assert "on cpu, and the kernels run on CUDA" in refused(problem())
    with pytest.raises(MoecError, match="run on CUDA"):
        launch.route(torch.randn(2, 6), None, Routing(2))


Change = Callable[[Problem], Problem]
WRONG: dict[str, tuple[Change, str]] = {
    "float64": (lambda g: problem(dtype=torch.float64), "x is torch.float64"),
    "mixed dtypes": (lambda g: replace(g, w_in=g.w_in.half()), "w_in is torch.float16"),  # type: ignore[union-attr]
    "mixed devices": (lambda g: replace(g, w_in=g.w_in.to("meta")), "w_in on meta"),  # type: ignore[union-attr]
    "int32 ids": (lambda g: replace(g, ids=g.ids.int()), "ids is torch.int32"),
    "integer weights": (lambda g: replace(g, weights=g.ids), "weights is torch.int64"),
    "fewer weights": (lambda g: replace(g, weights=g.weights[:, :1]), "don't fit"),
    "fewer tokens": (lambda g: replace(g, x=g.x[:3]), "don't fit"),
    "narrow x": (lambda g: replace(g, x=g.x[:, :30]), "w_in is [6, 48, 40], not [6, 48, 30]"),
    "transposed": (lambda g: replace(g, w_in=g.w_in.mT), "w_in is [6, 40, 48], not [6, 48, 40]"),  # type: ignore[union-attr]
    "flat": (lambda g: replace(g, w_out=g.w_out[0]), "not [E, F*I, H]"),  # type: ignore[index]
    "other experts": (lambda g: replace(g, w_out=g.w_out[:5]), "w_out is [5, 40, 24], not [6, 40, 24]"),  # type: ignore[index]
    "no choice": (lambda g: replace(g, ids=g.ids[:, :0], weights=g.weights[:, :0]), "ids [5, 0]"),
    "a number": (lambda g: replace(g, x=g.x[0, 0]), "x is []"),
    "no width": (lambda g: replace(g, w_in=torch.zeros(6, 0, 40), w_out=torch.zeros(6, 40, 0)), "nothing to multiply"),
    "short bias": (lambda g: replace(g, b_in=torch.zeros(6, 24)), "b_in is [6, 24]"),
    "long bias": (lambda g: replace(g, b_out=torch.zeros(6, 41)), "b_out is [6, 41]"),
    "sparse x": (lambda g: replace(g, x=g.x.to_sparse()), "x is torch.sparse_coo"),
    "sparse matrices": (lambda g: replace(g, w_out=g.w_out.to_sparse()), "w_out is torch.sparse_coo"),  # type: ignore[union-attr]
    "2 bits": (lambda g: replace(g, w_in=packed(bits=2)), "2 bits"),
    "odd groups": (lambda g: replace(g, w_in=packed(group=5)), "end inside a byte"),
    "scales": (
        lambda g: replace(g, w_in=replace(packed(), scale=torch.ones(6, 47, 5))),
        "scales are [6, 47, 5], not [6, 48, 5]",
    ),
    "strided scales": (lambda g: replace(g, w_in=replace(packed(), scale=torch.ones(6, 5, 48).mT)), "not contiguous"),
    "zero points": (lambda g: replace(g, w_in=replace(packed(), zero=torch.zeros(6, 48, 5))), "zero points"),
    "packed as int32": (
        lambda g: replace(g, w_in=replace(packed(), values=torch.zeros(6, 48, 20, dtype=torch.int32))),
        "packed values are torch.int32",
    ),
}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors(name: str) -> None:
    change, message = WRONG[name]
    check_experts(*problem().tensors(), Activation())
    assert message in refused(change(problem()))


@pytest.mark.usefixtures("on_cpu")
def test_the_activation_says_how_many_rows() -> None:
    assert "(F = 1)" in refused(problem(), Activation(gated=False))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "rule",
    [
        Routing(7),
        Routing(0),
        Routing(2, groups=4),
        Routing(2, groups=3, top_groups=4),
        Routing(1, groups=6, group_score="top2"),
    ],
    ids=str,
)
def test_rules_that_do_not_fit(rule: Routing) -> None:
    check_route(torch.randn(2, 6), torch.zeros(6), Routing(2, groups=3))
    with pytest.raises(MoecError, match="cannot choose among 6 experts"):
        check_route(torch.randn(2, 6), None, rule)


WRONG_LOGITS = {
    "float64": (torch.ones(2, 6).double(), None),
    "a bias of another length": (torch.ones(2, 6), torch.zeros(5)),
    "a scalar": (torch.tensor(1.0), None),
}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", WRONG_LOGITS)
def test_wrong_logits(name: str) -> None:
    logits, bias = WRONG_LOGITS[name]
    with pytest.raises(MoecError):
        check_route(logits, bias, Routing(2))


@pytest.mark.usefixtures("on_cpu")
def test_ids_are_checked_on_request() -> None:
    check_ids(torch.tensor([[0, 5]]), 6)
    check_ids(torch.zeros(0, 2, dtype=torch.int64), 6)
    for bad in (-1, 6):
        with pytest.raises(MoecError, match="experts from 0 to 5"):
            check_ids(torch.tensor([[0, bad]]), 6)
    given: dict[str, Any] = {"rule": Activation(), "checked": True}
    with pytest.raises(MoecError, match="ids reach from 0 to 9"):
        launch.experts(*replace(problem(), ids=torch.tensor([[0, 9]] * 5)).tensors(), **given)


@pytest.mark.usefixtures("on_cpu")
def test_wrong_routers() -> None:
    x, w, b = torch.zeros(3, 8), torch.zeros(6, 8), torch.zeros(6)
    check_router(x, w, b, b, Routing(2))
    for wrong in (
        (x, w.mT, b, b),
        (x, w, b[:5], b),
        (x, w, b, w),
        (x.double(), w, b, b),
        (x, w.long(), b, b),
        (x[0, 0], w, b, b),
    ):
        with pytest.raises(MoecError) as caught:
            check_router(*wrong, Routing(2))
        assert caught.value.code == "M212"
    with pytest.raises(MoecError, match="cannot choose among 6 experts"):
        check_router(x, w, b, b, Routing(7))


def test_more_than_32_bits_count() -> None:
    """On tensors without memory."""

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    few, many = 2**30, 2**30 + 2**29
    with recording(90):
        for tokens, says in ((few - 2**15, None), (many, "more pairs")):
            given = (
                empty(tokens, 4),
                empty(tokens, 2, dtype=torch.int64),
                empty(tokens, 2),
                empty(6, 8, 4),
                empty(6, 4, 4),
                None,
                None,
                Activation(),
            )
            with pytest.raises(MoecError, match=says) if says else nullcontext():
                check_experts(*given)
        ids, weights = empty(3, 2, dtype=torch.int64), empty(3, 2)
        with pytest.raises(MoecError, match="more pairs or more weights an expert"):
            check_experts(
                empty(3, 2**16), ids, weights, empty(6, 2**16, 2**16), empty(6, 2**16, 2**15), None, None, Activation()
            )
        far = torch.empty_strided((6, 8, 4), (0, 0, 2**30), dtype=torch.float16, device="meta")
        with pytest.raises(MoecError, match="w_in's rows reach further"):
            check_experts(empty(3, 4), ids, weights, far, empty(6, 4, 4), None, None, Activation())
        with pytest.raises(MoecError, match="more tokens"):
            check_route(empty(2**31, 6), None, Routing(2))
        with pytest.raises(MoecError, match="larger router"):
            check_router(empty(3, 2**16), empty(2**16, 2**16), None, None, Routing(2))


@pytest.mark.usefixtures("on_cpu")
def test_what_is_right_is_put_into_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks run at each call of each block: where nothing is wrong they write no sentence."""
    worded: list[str] = []
    write = checks._of
    monkeypatch.setattr(checks, "_of", lambda tensor: worded.append("") or write(tensor))
    given = problem(biases=True)
    check_experts(*given.tensors(), Activation())
    check_router(given.x, torch.randn(6, 40), torch.zeros(6), None, Routing(2))
    check_route(torch.randn(2, 6), torch.zeros(6), Routing(2))
    assert worded == []
    with pytest.raises(MoecError):
        check_experts(*replace(given, x=given.x[:, :30]).tensors(), Activation())
    assert worded != []
