"""Which lowering a block gets: by library, GPU, activation, quantization and tokens, always with a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moec.backends.tensorrt.kernel_defaults import KernelDefault
from moec.backends.tensorrt.options import LOWERINGS
from moec.backends.tensorrt.policy import (
    KERNELS,
    OFF,
    PIECES,
    UNPACKED,
    BuildPlan,
    FormChoice,
    Shape,
    choose,
    gathering_pays,
    memory_bytes,
    weight_bytes,
    why_not_kernels,
    why_not_native,
)
from moec.dialect import Activation
from moec.kernels.dispatch import has_triton
from moec.targets.backend import Refusal

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
MIXTRAL = Shape(8, 2, 4096, 14336, Activation())
FINE = Shape(128, 8, 2048, 768, Activation())
BLACKWELL = BuildPlan("tensorrt", architectures=(100,), tokens=1, length=1)
HOPPER = replace(BLACKWELL, architectures=(90,))
RTX = replace(HOPPER, edition="tensorrt-rtx", architectures=(120,))  # standard operators and nothing else
MANY = {"tokens": 8192, "length": 1024}  # of the largest call, as without options
QWEN3 = FINE
GPT_OSS = Shape(128, 4, 2880, 2880, Activation("silu", alpha=1.702, beta=1.0, limit=7.0), bits=4, biases="all")
DEEPSEEK = Shape(256, 8, 7168, 2048, Activation(), bits=0)


def chosen(shape: Shape, plan: BuildPlan) -> FormChoice:
    found = choose(shape, plan)
    assert isinstance(found, FormChoice), found
    return found


def refused(shape: Shape, plan: BuildPlan) -> Refusal:
    found = choose(shape, plan, "layer.0")
    assert isinstance(found, Refusal), found
    assert found.where == "layer.0" and found.fix
    return found


def test_few_tokens_gather_and_many_do_not() -> None:
    assert chosen(MIXTRAL, RTX).lowering == "gathered"
    assert chosen(FINE, replace(RTX, tokens=5)).lowering == "gathered"
    assert chosen(FINE, replace(RTX, tokens=6, step=6)).lowering == "dense"


def test_a_step_moves_no_more_than_it_needs_whatever_prompts_are_long() -> None:
    """Until now one form held for both: Qwen3's step read 16 times the bytes of its experts."""
    found = chosen(QWEN3, replace(RTX, **MANY))
    assert (found.lowering, found.few, found.piece) == ("either", 5, 0)
    assert found.facts()["form"] == "gathered to 5 tokens, else dense"
    assert found.step_bytes == 3 * 8 * 3 * 768 * 2048 * 2 < weight_bytes(QWEN3, "dense", 1) / 5
    assert "226.49 MB" not in found.why and "0.23 GB of weights gathered, 1.21 GB as all experts" in found.why
    assert chosen(QWEN3, replace(RTX, step=8, **MANY)).lowering == "dense", "eight texts choose as much as there is"


@pytest.mark.parametrize("shape", [GPT_OSS, DEEPSEEK, replace(DEEPSEEK, bits=4)], ids=["gpt-oss", "v3", "v3 of 4 bits"])
@pytest.mark.parametrize("plan", [RTX, replace(BLACKWELL), HOPPER], ids=["rtx", "sm100", "sm90"])
def test_large_models_are_not_refused(shape: Shape, plan: BuildPlan) -> None:
    """All experts' rows of 8192 tokens are more than 16 GiB of both; in pieces they are not."""
    found = chosen(shape, replace(plan, **MANY))
    assert memory_bytes(shape, "dense", 8192) > plan.memory_bytes >= found.memory_bytes
    assert found.lowering == ("kernels" if plan is HOPPER else "dense" if shape.bits else "either")
    assert found.lowering == "kernels" or 1 < -(-8192 // found.piece) <= PIECES


def test_where_gathering_pays_is_a_count_of_bytes() -> None:
    for shape in (MIXTRAL, QWEN3, DEEPSEEK):
        few = gathering_pays(shape)
        assert (
            weight_bytes(shape, "gathered", few)
            <= weight_bytes(shape, "dense", few)
            == shape.experts * (3 * shape.inner * shape.hidden * 2)
        )
        assert weight_bytes(shape, "gathered", few + 1) > weight_bytes(shape, "dense", few + 1)
        assert weight_bytes(shape, "kernels", 1) == weight_bytes(shape, "gathered", 1) / 3
        assert weight_bytes(shape, "kernels", 8192) == weight_bytes(shape, "dense", 8192)
    assert gathering_pays(GPT_OSS) == 0 and UNPACKED in refused(GPT_OSS, replace(RTX, lowering="either")).reason
    assert weight_bytes(GPT_OSS, "dense", 1) == 128 * 3 * 2880 * 2880 / 2


@pytest.mark.parametrize("sm", [100, 103, 110])
def test_the_native_layer_is_taken_where_it_is(sm: int) -> None:
    found = chosen(MIXTRAL, replace(BLACKWELL, architectures=(sm,)))
    assert (found.lowering, found.form) == ("native", "gathered")


@pytest.mark.parametrize(
    ("shape", "plan", "why"),
    [
        (MIXTRAL, HOPPER, "not sm90"),
        (MIXTRAL, replace(BLACKWELL, architectures=(120,)), "not sm120"),
        (MIXTRAL, replace(BLACKWELL, architectures=(100, 90)), "not sm90"),
        (MIXTRAL, replace(BLACKWELL, architectures=()), "not named"),
        (MIXTRAL, replace(BLACKWELL, edition="tensorrt-rtx"), "RTX"),
        (replace(MIXTRAL, activation=Activation("gelu")), BLACKWELL, "gated SiLU"),
        (replace(MIXTRAL, activation=Activation("silu", gated=False)), BLACKWELL, "gated SiLU"),
        (replace(MIXTRAL, activation=Activation("silu", alpha=1.702, beta=1.0, limit=7.0)), BLACKWELL, "gated SiLU"),
        (replace(MIXTRAL, bits=4), BLACKWELL, "4 bits"),
        (replace(MIXTRAL, score_before=True), BLACKWELL, "after the experts"),
        (replace(MIXTRAL, biases="some"), BLACKWELL, "all biases or none"),
    ],
)  # fmt: skip
def test_the_native_layer_is_not_taken_where_it_would_be_wrong(shape: Shape, plan: BuildPlan, why: str) -> None:
    assert why in why_not_native(shape, plan)
    found = chosen(shape, plan)
    assert found.lowering == "kernels" or (found.lowering != "native" and why in found.why)
    assert why in refused(shape, replace(plan, lowering="native")).reason


def test_long_texts_do_not_take_the_native_layer_unless_told() -> None:
    long = replace(BLACKWELL, tokens=512, length=512)
    assert chosen(MIXTRAL, long).lowering == "either" and "512" in chosen(MIXTRAL, long).why
    assert chosen(MIXTRAL, replace(long, lowering="native")).lowering == "native"


@pytest.mark.parametrize("sm", KERNELS)
def test_kernels_of_our_own_are_taken_when_asked_for(sm: int) -> None:
    plan = replace(HOPPER, architectures=(sm,), lowering="kernels")
    assert (chosen(MIXTRAL, plan).lowering, chosen(MIXTRAL, plan).form) == ("kernels", "gathered")
    many = chosen(
        replace(MIXTRAL, activation=Activation("gelu"), biases="some", score_before=True, item_bytes=4),
        replace(plan, tokens=8192),
    )
    assert (many.lowering, many.form) == ("kernels", "dense")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_they_read_packed_weights(bits: int) -> None:
    assert chosen(replace(MIXTRAL, bits=bits), replace(HOPPER, tokens=8192, lowering="kernels")).lowering == "kernels"


@needs_triton
@pytest.mark.parametrize("sm", KERNELS)
def test_they_are_the_default_unless_a_measurement_says_otherwise(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(HOPPER, architectures=(sm,))
    for tokens in (1, 8192):
        found = chosen(QWEN3, replace(plan, tokens=tokens))
        assert found.lowering == "kernels" and "not measured" in found.why and "75.50 MB at the least" in found.why
    measured = KernelDefault(False, "measured: slower")
    monkeypatch.setattr("moec.backends.tensorrt.policy.kernel_defaults", lambda: {sm: measured})
    found = chosen(QWEN3, replace(plan, tokens=8192))
    assert found.lowering == "either" and OFF + measured.origin in found.why and "lowering=kernels" in found.why
    assert chosen(QWEN3, replace(plan, lowering="kernels")).lowering == "kernels"


@pytest.mark.parametrize(
    ("shape", "plan", "why"),
    [
        (MIXTRAL, BLACKWELL, "sm100"),
        (MIXTRAL, replace(HOPPER, architectures=()), "not named"),
        (MIXTRAL, replace(HOPPER, edition="tensorrt-rtx"), "no plugins"),
        (replace(MIXTRAL, bits=3), HOPPER, "not 3 bits"),
        (replace(MIXTRAL, bits=8, floats=True), HOPPER, "no small floats"),
        (replace(MIXTRAL, bits=4, hidden=4092), HOPPER, "whole 32-bit words"),
        (replace(MIXTRAL, item_bytes=8), HOPPER, "16 or 32 bits"),
        (replace(MIXTRAL, inner=2**20), HOPPER, "more than moec's kernels count"),
        (replace(MIXTRAL, hidden=8, inner=8), replace(HOPPER, tokens=2**30), "more than moec's kernels count"),
    ],
)  # fmt: skip
def test_kernels_are_not_taken_where_they_would_be_wrong(shape: Shape, plan: BuildPlan, why: str) -> None:
    assert why in why_not_kernels(shape, plan) and not why_not_kernels(MIXTRAL, HOPPER)
    assert why in refused(shape, replace(plan, lowering="kernels", memory_bytes=2**60)).reason


def test_without_triton_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moec.backends.tensorrt.policy.has_triton", lambda: False)
    assert "moec[triton]" in refused(MIXTRAL, replace(HOPPER, lowering="kernels")).reason


def test_kernels_need_no_more_than_the_rows_of_what_was_chosen() -> None:
    plan = replace(HOPPER, tokens=8192, lowering="kernels", memory_bytes=2**30)
    assert memory_bytes(MIXTRAL, "kernels", 1000) == pytest.approx(1000 * 2 * (4096 + 14336) * 2, rel=1e-3)
    assert chosen(MIXTRAL, plan).memory_bytes < 2**30 < memory_bytes(MIXTRAL, "dense", 8192)
    fix = refused(MIXTRAL, replace(plan, memory_bytes=2**28)).fix
    assert isinstance(choose(MIXTRAL, replace(plan, memory_bytes=2**28, tokens=int(fix.split()[2]))), FormChoice)


def test_a_form_that_is_asked_for_is_taken() -> None:
    for form in ("gathered", "dense", "either"):
        found = chosen(MIXTRAL, replace(HOPPER, lowering=form))
        assert (found.lowering, found.form, found.why[:9]) == (form, form, "asked for")
    assert set(LOWERINGS) == {"auto", "native", "gathered", "dense", "either", "kernels"}


def test_memory_is_bounded_by_the_most_tokens() -> None:
    copied = 3 * 4096 * 14336 * 2  # three matrices of an expert in half precision
    assert memory_bytes(MIXTRAL, "gathered", 1) == pytest.approx(2 * copied, rel=1e-3)
    assert memory_bytes(replace(MIXTRAL, bits=4), "gathered", 1) == pytest.approx((8 + 2) * copied, rel=1e-3), (
        "all experts are unpacked"
    )
    assert memory_bytes(MIXTRAL, "dense", 1000) == pytest.approx(1000 * 8 * 14336 * 3 * 2, rel=1e-3)
    assert memory_bytes(replace(MIXTRAL, activation=Activation("relu", gated=False)), "dense", 1000) == pytest.approx(
        1000 * 8 * 14336 * 2 * 2, rel=1e-3
    )


def test_too_much_memory_is_refused_with_the_tokens_that_fit() -> None:
    """In so many pieces as there may be; gathered experts have one."""
    plan = replace(RTX, tokens=8192, memory_bytes=2**28)
    reason = refused(MIXTRAL, plan)
    fitting = int(reason.fix.split()[2])
    found = chosen(MIXTRAL, replace(plan, tokens=fitting))
    assert -(-fitting // found.piece) == PIECES and found.memory_bytes <= plan.memory_bytes
    assert isinstance(choose(MIXTRAL, replace(plan, tokens=fitting + 1)), Refusal) and "16 pieces" in reason.reason
    assert "more memory" in refused(replace(MIXTRAL, bits=4), replace(plan, tokens=1, lowering="gathered")).fix


def test_gathering_ends_where_memory_does() -> None:
    one = memory_bytes(QWEN3, "gathered", 1)
    assert [chosen(QWEN3, replace(RTX, tokens=8, memory_bytes=n * one)).few for n in (1, 3, 9)] == [1, 3, 5]


def test_every_choice_says_why_and_how_much() -> None:
    for plan in (HOPPER, BLACKWELL, RTX, replace(HOPPER, tokens=4096, length=4096), replace(RTX, **MANY)):
        for shape in (MIXTRAL, FINE, replace(FINE, bits=4), GPT_OSS, DEEPSEEK):
            found, facts = chosen(shape, plan), chosen(shape, plan).facts()
            form = "kernels" if found.lowering in ("kernels", "native") else found.form
            assert facts["memory_bytes"] == memory_bytes(shape, form, plan.tokens, found.few, found.piece)
            assert "a call of 1 token moves" in found.why and facts["step_bytes"] == found.step_bytes > 0
