"""Times on this machine's processor, from a record whose numbers can be added up by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from moec.errors import MoecError
from moec.execution.memory import total_bytes
from moec.huggingface.shape import shape_of
from moec.planning.estimate import estimate
from moec.planning.formats import find_format, recipe_format, stored_bytes
from moec.planning.load import Load
from moec.planning.on_cpu import ThisMachine, mixture_seconds, rows_of_an_expert, this_machine
from moec.planning.pace import decode_time
from moec.planning.probed import keep
from moec.planning.serving import Asked
from moec.planning.shape import Mixture, Shape, State, Tensor
from moec.planning.traffic import Traffic
from tests.planning import configs
from tests.planning.records import EXPERTS, own_cache, record
from tests.planning.shapes import dense, mixture

DENSE = Shape(
    name="dense",
    tensors=(
        Tensor("model.embed.weight", (50, 10), "input embedding"),
        Tensor("layers.0.attn.q.weight", (10, 10), "attention"),
        Tensor("layers.0.attn.k.weight", (5, 10), "attention"),
        Tensor("layers.0.attn.v.weight", (5, 10), "attention"),
        Tensor("layers.0.attn.o.weight", (10, 10), "attention"),
        Tensor("layers.0.norm.weight", (10,), "norm"),
        Tensor("head.weight", (50, 10), "output head"),
    ),
    mixtures=(),
    states=(State("keys and values", 10),),
    hidden=10,
    layers=1,
    vocabulary=50,
    heads=2,
    head_size=5,
)
MIXTURE = Mixture("layers.0.experts", 4, 2, 4 * 1000, 10, 100)


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ThisMachine:
    own_cache(tmp_path / "cache", monkeypatch)
    keep(record())
    return this_machine("cpu")


def test_a_token_is_the_sum_of_its_parts(cpu: ThisMachine) -> None:
    time = cpu.time(DENSE, find_format("fp32"), batch=1, context=20, token=True)
    products = 2 * 1e-3 + 300 * 1e-9  # queries, keys and values are one product, the output another
    head = 1e-3 + 500 * 1e-9
    scores = 20 * 2 * 5 * 1.5e-9  # at 20 tokens, half way between the two lengths
    call = 1.0 + 0.1 + 0.01 * (2 + 1) + 20 * 10 * 1e-6 + scores
    between = (20 + 4 * 10) * 1e-8  # queries, keys and values are cut, the hidden numbers added and normalized
    assert time is not None and time.low == pytest.approx(0.9 * (products + head + call + between), rel=1e-12)
    assert time.high == pytest.approx(time.low / 0.9 * 1.2) and time.bound == "compute"
    assert time.origin.startswith("measured here on 2026-01-02 (")


def test_a_prompt_goes_through_layers_by_rows_and_through_the_head_once(cpu: ThisMachine) -> None:
    time = cpu.time(DENSE, find_format("bf16"), batch=2, context=4, token=False)
    products = 2 * (1e-3 + 5e-4) + 300 * 2e-9 * 8 / 4  # 8 rows: twice the most that was timed
    head = 1e-3 + 5e-4 + 500 * (1e-9 + 1e-9 / 3)  # 2 rows
    call = 1.0 + 0.1 + 8 * 0.03 + 2 * 4 * 10 * 1e-6 + 2 * 8 * 10 * 1e-9
    between = 8 * (20 + 4 * 10) * 1e-8
    assert time is not None and time.low == pytest.approx(0.9 * (products + head + call + between), rel=1e-12)


def test_experts_are_counted_by_the_rows_that_they_get() -> None:
    fixed = 1e-2 + 4 * 1e-5
    assert mixture_seconds(EXPERTS, MIXTURE, 1) == pytest.approx(fixed + 2 * (1e-4 + 1000 * 1e-9))
    one, two = 4 * 2 * 0.25, 4 * 0.25  # of two tokens: experts with one row, with two
    expected = fixed + (one + two) * 1e-4 + 1000 * (one * 1e-9 + two * (1e-9 + 2e-9 / 3))
    assert mixture_seconds(EXPERTS, MIXTURE, 2) == pytest.approx(expected)
    wide = msgspec.structs.replace(EXPERTS, a_number=1e-7, an_inner=1e-8)
    numbers = 2 * 2 * (10 * 1e-7 + 100 * 1e-8)  # of the rows of two tokens in two experts each
    assert mixture_seconds(wide, MIXTURE, 2) == pytest.approx(expected + numbers)


@pytest.mark.parametrize(("rows", "share"), [(1, 0.25), (7, 0.5), (4096, 1 / 16), (3, 1.0)])
def test_rows_of_an_expert_are_binomial(rows: int, share: float) -> None:
    found = dict(rows_of_an_expert(rows, share))
    assert sum(found.values()) == pytest.approx(1 - (1 - share) ** rows, abs=1e-6)
    assert sum(n * p for n, p in found.items()) == pytest.approx(rows * share, rel=1e-5)
    wrong = {n: math.comb(8, n) * 0.4**n * 0.6 ** (8 - n) for n in range(1, 9)}
    assert abs(sum(wrong.values()) - (1 - 0.5**7)) > 1e-3


def test_what_was_not_measured_has_no_time(cpu: ThisMachine) -> None:
    assert cpu.time(DENSE, find_format("nvfp4"), 1, 20, True) is None
    latent = replace(DENSE, states=(State("compressed keys and values", 10),))
    assert cpu.time(latent, find_format("fp32"), 1, 20, True) is None
    assert cpu.time(replace(DENSE, unknown=("a layer",)), find_format("fp32"), 1, 20, True) is None


def test_formats_are_held_as_engines_hold_them(cpu: ThisMachine) -> None:
    rounded = this_machine("cpu-int8")
    assert [cpu.held(find_format(f)).bits for f in ("bf16", "int8", "int4", "int2", "nvfp4")] == [32, 32, 4, 32, 4]
    assert [rounded.held(find_format(f)).bits for f in ("bf16", "int8", "int4")] == [32, 8, 4]
    assert cpu.forms(find_format("int8")) == ("fp32", "fp32") != rounded.forms(find_format("int8"))


def test_each_part_is_held_in_its_own_form(cpu: ThisMachine) -> None:
    """2 bits have no kernel for a single matrix, and experts are in 4; a head of 4 bits is timed, and held, as 32."""
    rounded, matrix, embedding = this_machine("cpu-int8"), 1024 * 1024, 32000 * 1024

    def bits(device: ThisMachine, name: str) -> tuple[float, float, float]:
        sizes = stored_bytes(mixture(layers=1).tensors, device.held(find_format(name)))
        experts = sizes["routed experts"] * 8 / (8 * 3 * 1024 * 2048)
        return sizes["attention"] * 8 / (2.5 * matrix), experts, sizes["output head"] * 8 / embedding

    scales = 32 / 64
    assert bits(cpu, "int2") == pytest.approx((32, 4 + scales, 32))
    assert bits(cpu, "int4") == pytest.approx((4 + scales, 4 + scales, 32))
    assert bits(rounded, "int4") == pytest.approx((4 + scales, 4 + scales, 8 + scales))
    assert cpu.held(recipe_format("small")).bits == 32  # what a preset leaves
    assert cpu.held(cpu.held(find_format("int2"))) == cpu.held(find_format("int2"))


def packed_as(shape: Shape, bits: dict[str, int], group: int = 5) -> Shape:
    """The shape with the matrices of some parts in integers of so many bits, and a scale in each group of a row."""
    return replace(
        shape,
        tensors=tuple(
            replace(t, codes=t.count * bits[t.part] // 8, scales=t.count // group)
            if t.part in bits and len(t.shape) > 1
            else t
            for t in shape.tensors
        ),
    )


def test_what_a_pass_has_packed_is_timed_in_the_forms_that_it_is_packed_in(cpu: ThisMachine) -> None:
    products = {
        form: msgspec.structs.replace(costs, an_operator=k + 1.0)
        for k, (form, costs) in enumerate(cpu.record.products.items())
    }
    experts = {
        form: msgspec.structs.replace(costs, a_block=10.0 * k)
        for k, (form, costs) in enumerate(cpu.record.experts.items())
    }
    apart, left = msgspec.structs.replace(cpu.record, products=products, experts=experts), recipe_format("packed form")
    exact, rounded = (msgspec.structs.replace(this_machine(n), record=apart) for n in ("cpu", "cpu-int8"))
    four = {"attention": 4, "dense FFN": 4, "output head": 8, "routed experts": 4}
    for shape in (DENSE, mixture(layers=1)):
        for device in (exact, rounded):
            plain = device.time(shape, find_format("int4"), 2, 20, True)
            packed = device.time(packed_as(shape, four), left, 2, 20, True)
            assert plain and packed and packed.low == pytest.approx(plain.low, rel=1e-12)
    eight = packed_as(DENSE, {"attention": 4})  # the head alone is left, and computed in float32
    full, quarter, whole = (
        exact.time(s, f, 1, 20, True) for s, f in ((eight, left), (DENSE, find_format("fp32")), (DENSE, left))
    )
    assert full and quarter and full.low - quarter.low == pytest.approx(0.9 * 2 * 1.0)  # two products in the next form
    assert whole is None  # a recipe that has packed nothing is no format
    two = packed_as(DENSE, {"attention": 2})
    assert rounded.time(two, left, 1, 20, True) is None  # no rounded product with 2 bits was timed
    floats = replace(eight, tensors=tuple(replace(t, scales=0) for t in eight.tensors))
    assert exact.time(floats, left, 1, 20, True) is None  # 4 bits with scales in 8: no integers


def test_what_a_pass_has_packed_in_8_bits_is_unpacked_where_nothing_may_be_rounded(cpu: ThisMachine) -> None:
    shape, left = packed_as(DENSE, {"attention": 8}), recipe_format("packed form")
    exact, narrow = (stored_bytes(shape.tensors, d.held(left)) for d in (cpu, this_machine("cpu-int8")))
    assert (exact["attention"], narrow["attention"]) == (4 * 300, 300 + 4 * 60)
    assert stored_bytes(shape.tensors, left)["attention"] == 300 + 2 * 60  # on any other device


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["cpu", "cpu-int8"])
def test_a_pass_and_a_format_of_as_many_bits_have_the_same_bytes_and_times(
    cpu: ThisMachine, name: str, bits: int
) -> None:
    device, format = this_machine(name), find_format(f"int{bits}")
    for shape in (dense(layers=1), mixture(layers=1)):
        parts = {"attention": bits, "dense FFN": bits, "routed experts": bits, "output head": max(bits, 8)}
        packed, left = packed_as(shape, parts, group=64), recipe_format("packed form")
        times = device.time(shape, format, 2, 20, True), device.time(packed, left, 2, 20, True)
        assert [time is not None for time in times] == [name == "cpu" or bits > 2] * 2
        if times[0] and times[1]:
            assert times[1].low == pytest.approx(times[0].low, rel=1e-12)
            sizes = [stored_bytes(s.tensors, device.held(f)) for s, f in ((shape, format), (packed, left))]
            assert sizes[0] == sizes[1]
            assert sizes[0] != stored_bytes(packed.tensors, left)  # as it is packed, with scales of 16 bits


def test_what_is_not_known_of_this_machine_is_left_out_everywhere(cpu: ThisMachine) -> None:
    """No table of costs, traffic or drafts has a GPU's shares of bandwidth for a processor; packed, it has no times."""
    asked = Asked(prices={"cpu": 0.1}, traffic=Traffic(0.001, 8, 2), draft=2, offload=("ram", "disk"))
    small = mixture(layers=1)
    packed = replace(small, tensors=tuple(replace(t, codes=t.count // 2) for t in small.tensors))
    for shape, name in ((small, "fp8"), (packed, "bf16")):
        found = estimate(shape, (name,), ("cpu",), (1,), 64, asked=asked)
        assert found.situations[0].devices == 1 and found.situations[0].decode_time is None
        assert found.serving and (found.serving.costs, found.serving.traffic) == ((), ())
        assert [d.device for d in found.serving.drafts] == [None]
        assert [o.link for o in found.serving.offloads] == ["nvme"]  # experts in ram are where they are
    with pytest.raises(ValueError, match="no times"):
        decode_time(packed, find_format("bf16"), cpu, 1, 64)
    whole = estimate(small, ("bf16",), ("cpu",), (1,), 64, asked=asked).serving
    assert whole and whole.costs and whole.traffic and whole.drafts[0].device == "cpu"


def test_an_uneven_load_touches_fewer_experts_with_more_rows_each(cpu: ThisMachine) -> None:
    fixed = 1e-2 + 4 * 1e-5
    found = mixture_seconds(EXPERTS, MIXTURE, 2, (1.0, 0.5, 0.5, 0.0))
    sure, half = 1e-4 + 1000 * (1e-9 + 2e-9 / 3), 0.5 * (1e-4 + 1000e-9) + 0.25 * (1e-4 + 1000 * (1e-9 + 2e-9 / 3))
    assert found == pytest.approx(fixed + sure + 2 * half)
    assert (
        found < mixture_seconds(EXPERTS, MIXTURE, 2, (0.5,) * 4) == pytest.approx(mixture_seconds(EXPERTS, MIXTURE, 2))
    )
    many = Mixture("experts", 512, 8, 512 * 1000, 10, 100)
    chances = Load("zipf:1.0", 1.0).chances(0, many)
    one_by_one = sum(mixture_seconds(EXPERTS, replace(many, experts=1, parameters=1000), 64, (p,)) for p in chances)
    blocks = 511 * 1e-2  # is counted once
    assert mixture_seconds(EXPERTS, many, 64, chances) == pytest.approx(one_by_one - blocks, rel=0.01)
    times = [
        estimate(mixture(layers=1), ("fp32",), ("cpu",), (4,), 64, asked=Asked(load=load)).situations[0].decode_time
        for load in (Load(), Load("zipf:1.0", 1.0), Load("measured", layers=((0.65, 0.35, *[0.0] * 6),)))
    ]
    assert times[0] and times[1] and times[2] and times[0].low > times[1].low > times[2].low


def test_the_device_stands_beside_others(cpu: ThisMachine, tmp_path: Path) -> None:
    shape = shape_of(str(configs.write(tmp_path, configs.LLAMA_1B)))
    rows = {s.device: s for s in estimate(shape, ("bf16",), ("cpu", "CPU-int8", "h200"), (1,), 64).situations}
    assert list(rows) == ["cpu", "cpu-int8", "h200"]
    assert rows["cpu"].memory.weights == pytest.approx(2 * rows["h200"].memory.weights, rel=0.01)
    assert rows["cpu"].memory.state == 2 * rows["h200"].memory.state
    assert rows["cpu"].memory.runtime < rows["h200"].memory.runtime  # no device has a context
    (narrow,) = estimate(shape, ("bf16",), ("cpu",), (1,), 64, state="fp8").situations
    assert narrow.memory.state == rows["cpu"].memory.state  # engines here have 32 bits, whatever is asked
    assert this_machine("cpu").memory == total_bytes() >> 30
    (tiny,) = estimate(DENSE, ("bf16",), ("cpu",), (1,), 64).situations
    assert tiny.decode_time and "measured here" in tiny.decode_time.origin


def test_a_machine_that_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache(tmp_path / "cache", monkeypatch)
    with pytest.raises(MoecError, match="moec probe"):
        estimate(DENSE, ("fp32",), ("cpu",), (1,), 64)
