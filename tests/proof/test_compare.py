"""Figures are checked against numpy's own, and every verdict has a mutant that must get the other one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.program import AppliedPass, Input
from moec.proof.compare import Comparison, OutputError, Tolerance, compare
from moec.proof.decided_tokens import ComparedTokens

FP32 = Tolerance.of(torch.float32)


class Table(Engine):
    """Looks its outputs up: what `x` says is which of the given results comes back."""

    def __init__(self, *results: dict[str, Tensor]) -> None:
        self.name, self.inputs, self.outputs = "table", (Input("x", torch.int64, ()),), tuple(results[0])
        self._results = results

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._results[int(inputs["x"])]


def run(want: list[dict[str, Tensor]], got: list[dict[str, Tensor]], tolerance: Tolerance = FP32) -> Comparison:
    return compare(Table(*want), Table(*got), [{"x": torch.tensor(i)} for i in range(len(want))], tolerance)


def one(want: Tensor, got: Tensor, tolerance: Tolerance = FP32) -> OutputError:
    return run([{"y": want}], [{"y": got}], tolerance).outputs[0]


def equal(want: Tensor, got: Tensor, tolerance: Tolerance = FP32) -> bool:
    return run([{"y": want}], [{"y": got}], tolerance).ok


def test_figures_are_those_of_numpy() -> None:
    want, noise = torch.randn(4, 7, 30), 1e-3 * torch.randn(4, 7, 30)
    found = one(want, want + noise)
    a, d = want.double().numpy(), ((want + noise).double() - want.double()).numpy()
    assert found.elements == 840
    assert found.max_abs == pytest.approx(np.abs(d).max())
    assert found.mean_abs == pytest.approx(np.abs(d).mean())
    assert found.deviation == pytest.approx(np.abs(d).max() / a.std())
    assert found.relative == pytest.approx(np.linalg.norm(d) / np.linalg.norm(a))
    b = a + d
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.top1 == pytest.approx((a.argmax(-1) == b.argmax(-1)).mean())


@pytest.mark.parametrize(
    ("name", "off", "right"),
    [
        ("present.3.recurrent_state", 1.5, True),
        ("present.3.recurrent_state", 2.5, False),
        ("present.3.conv_state", 1.5, False),
        ("logits", 1.5, False),
    ],
)
def test_a_recurrent_state_may_deviate_by_twice_as_much(name: str, off: float, right: bool) -> None:
    want = torch.randn(4, 7, 30)
    got = want.clone()
    got[0, 0, 0] += off * FP32.deviation * float(want.std())
    found = run([{name: want}], [{name: got}])
    assert found.ok is right
    assert found.used(found.worst) == pytest.approx(off / (2 if "recurrent" in name else 1), rel=0.01)
    assert not run([{name: want}], [{name: got}], Tolerance(FP32.deviation)).ok, "what a user asks for holds for all"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_tolerance_of_each_dtype_splits_good_from_bad(dtype: torch.dtype) -> None:
    tolerance, want = Tolerance.of(dtype), torch.randn(8, 64, dtype=torch.float64)
    step = torch.zeros_like(want)
    step[3, 5] = tolerance.deviation * want.std(correction=0)
    assert equal(want, want + 0.99 * step, tolerance)
    assert not equal(want, want + 1.01 * step, tolerance)


def test_rounding_to_half_passes_its_own_tolerance_and_not_that_of_float32() -> None:
    want = torch.randn(8, 64)
    assert equal(want, want.half().float(), Tolerance.of(torch.float16))
    assert not equal(want, want.bfloat16().float(), FP32)


def test_one_wrong_sample_of_many_fails() -> None:
    values = [{"y": torch.randn(2, 32)} for _ in range(4)]
    assert run(values, values).ok
    wrong = [*values[:3], {"y": values[3]["y"] + 0.1}]
    assert not run(values, wrong).ok


def test_a_few_numbers_are_measured_by_the_spread_of_all_samples() -> None:
    want = [{"y": torch.tensor([[v, v + 1e-4]])} for v in (-2.0, 1.0, 3.0)]
    near = [{"y": v["y"] + 1e-5} for v in want]
    assert run(want, near).ok  # 1e-5 is much beside a sample's own spread of 5e-5, and nothing beside that of all
    assert not run(want, [{"y": v["y"] + 0.1} for v in want]).ok


def test_a_constant_output_is_measured_by_its_size() -> None:
    assert equal(torch.full((4, 8), 5.0), torch.full((4, 8), 5.0001))
    assert not equal(torch.full((4, 8), 5.0), torch.full((4, 8), 5.1))
    assert equal(torch.zeros(4, 8), torch.zeros(4, 8))
    assert not equal(torch.zeros(4, 8), torch.full((4, 8), 1e-9))


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (torch.full((2, 20), float("nan")), "NaN"),
        (torch.full((2, 20), float("inf")), "infinite"),
        (torch.zeros(20, 2), "shape [20, 2]"),
    ],
)
def test_nan_infinity_and_shapes_fail_with_the_reason(got: Tensor, says: str) -> None:
    found = one(torch.randn(2, 20), got)
    assert not equal(torch.randn(2, 20), got) and says in found.problem


def test_a_missing_output_fails() -> None:
    comparison = run([{"y": torch.ones(2), "z": torch.ones(2)}], [{"y": torch.ones(2)}])
    assert [comparison.within(o) for o in comparison.outputs] == [True, False]
    assert comparison.worst.name == "z"


def test_a_broken_reference_is_nobodys_proof() -> None:
    broken = torch.tensor([1.0, float("nan")])
    with pytest.raises(MoecError) as error:
        one(broken, broken)
    assert error.value.code == "M105"


def test_integers_must_be_equal() -> None:
    assert equal(torch.arange(20), torch.arange(20))
    found = one(torch.arange(20), torch.arange(20).flip(0))
    assert not equal(torch.arange(20), torch.arange(20).flip(0)) and "20 of 20" in found.problem and found.top1 is None


def test_top1_lets_ties_choose_and_counts_near_ties_apart() -> None:
    want = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.9999, 0.0], [3.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    got = want.clone()
    got[0, 1] += 1e-4  # the other place of a tie
    got[1, 1] += 2e-4  # the reference was undecided
    got[2, 1] = 5.0  # plainly wrong
    found = one(want, got)
    assert found.top1 == 0.5 and found.top1_undecided == 0.25


def test_where_a_text_decides_outputs_have_to_be_numbers() -> None:
    want = torch.randn(2, 20)
    far = compare(Table({"y": want}), Table({"y": want + 9}), [{"x": torch.tensor(0)}], None)
    assert far.ok and far.tolerance is None and "a text decides" in str(far)
    for wrong in (torch.full((2, 20), float("nan")), want[:1]):
        assert not compare(Table({"y": want}), Table({"y": wrong}), [{"x": torch.tensor(0)}], None).ok


def test_an_output_of_which_nothing_is_compared_is_not_equal() -> None:
    want = torch.randn(2, 3, 4)
    nothing = ComparedTokens(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.bool), 6)
    sample = [{"x": torch.tensor(0)}]
    found = compare(Table({"y": want}), Table({"y": want}), sample, FP32, [nothing])
    assert not found.ok and found.worst.problem == "no element could be compared"


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_rms_of_each_width_splits_good_from_bad(bits: int) -> None:
    tolerance = Tolerance.of_passes([AppliedPass("quantize", 1, "approximate", widths=(bits,))])
    want, noise = 3 + torch.randn(64, 384, dtype=torch.float64), torch.randn(64, 384, dtype=torch.float64)
    noise *= tolerance.rms * want.std(correction=0) / noise.square().mean().sqrt()
    right = run([{"y": want}], [{"y": want + 0.99 * noise}], tolerance)
    assert right.ok and right.worst.deviation > 0.5 * tolerance.rms and f"({bits} bits)" in str(right)
    assert not equal(want, want + 1.01 * noise, tolerance)
    wrong = [want.roll(1, 0), want.roll(1, 1), want.flip(-1), 0 * want, 2 * want, want.mean().expand(want.shape)]
    assert not any(equal(want, w, tolerance) for w in wrong)


@pytest.mark.parametrize("widths", [(8,), (4,), (3,), (2,), ()])
def test_one_row_in_ten_that_is_anothers_fails(widths: tuple[int, ...]) -> None:
    tolerance = Tolerance.of_passes([AppliedPass("x", 1, "approximate", widths=widths)])
    want = 3 + torch.randn(64, 10, 384, dtype=torch.float64)
    wrong, one = want.clone(), want.clone()
    wrong[:, 0], one[0, 0] = want[:, 1], want[0, 1]
    assert equal(want, want + 0.5 * tolerance.rms * torch.randn_like(want), tolerance)
    assert not equal(want, wrong, tolerance) and not equal(want, one, tolerance)
    found = run([{"y": want}], [{"y": one}], tolerance)
    assert found.worst.rms < tolerance.rms < tolerance.row < found.worst.row and "worst row" in str(found)


def test_the_worst_output_is_the_one_that_takes_most_of_what_is_allowed() -> None:
    good = OutputError("a", 40, 0.1, 0.1, 2.0, 0.1, 1.0, None, None, "", 0.1, 0.2)
    near = replace(good, name="b", deviation=1.0, rms=0.35)
    found = Comparison("eager", "engine", None, 1, (good, near), 0.4, "4 bits", 1.1)
    assert found.worst is near and found.used(near) == pytest.approx(0.875)
    assert (
        replace(found, tolerance=2.0).worst is good
        and replace(found, outputs=(replace(good, row=1.2), near)).ok is False
    )


def test_the_rms_is_that_of_numpy_and_beside_it_a_bound_still_counts() -> None:
    want, noise = torch.randn(4, 30), 0.1 * torch.randn(4, 30)
    a, d = want.double().numpy(), ((want + noise).double() - want.double()).numpy()
    assert one(want, want + noise).rms == pytest.approx(np.sqrt((d * d).mean()) / a.std())
    assert equal(want, want + noise, Tolerance(rms=0.2)) and not equal(want, want + noise, Tolerance(0.01, 0.2))
    few = [{"y": torch.tensor([[v, v + 1e-4]])} for v in (-2.0, 1.0, 3.0)]
    assert run(few, [{"y": v["y"] + 1e-2} for v in few], Tolerance(rms=0.1)).ok, "by the spread of all samples"
