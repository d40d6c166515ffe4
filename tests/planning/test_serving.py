"""Questions about serving and their answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moec.errors import MoecError
from moec.planning.estimate import Estimate, estimate
from moec.planning.load import read_load
from moec.planning.question import Question
from moec.planning.serving import Asked
from moec.planning.shape import Shape
from moec.planning.traffic import Traffic
from tests.planning.shapes import dense, mixture

SHAPE = mixture()


def asked(devices: tuple[str, ...] = ("rtx4090",), ranks: tuple[int, ...] = (), **questions: object) -> Estimate:
    return estimate(SHAPE, ("bf16",), devices, (4,), 64, ranks, asked=Asked(**questions))  # type: ignore[arg-type]


def test_without_questions_only_loading_and_engines_are_answered() -> None:
    found = asked().serving
    assert found and [row.link for row in found.loading] == ["nvme", "10gbe", "100gbe"] and len(found.servers) == 3
    assert not any((found.idle, found.traffic, found.drafts, found.offloads, found.spreads))


def test_every_answer_goes_into_json() -> None:
    found = asked(
        ranks=(2,), prices={"rtx4090": 0.5}, traffic=Traffic(2.0, 64, 16), draft=2, offload=("disk",), links=("7GB/s",)
    ).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) and found["loading"][0]["rate"] == 7
    assert {s["how"] for s in found["spreads"]} == {"tensor", "expert", "data"}
    assert found["traffic"][0]["slow"]["cost_a_million"] > 0 and found["drafts"][0]["draft"] == 2
    assert found["idle"][0]["a_month"] == pytest.approx(0.5 * 730) and found["offloads"][0]["link"] == "nvme"


def test_another_model_is_served_too() -> None:
    found = estimate(
        SHAPE, ("bf16",), ("rtx4090",), (1,), 64, versus=dense(), asked=Asked(traffic=Traffic(2.0, 64, 16))
    )
    assert found.serving and [s.model for s in found.serving.traffic] == ["Mixture", "Dense"]


def test_a_load_is_in_every_figure() -> None:
    skewed = read_load("zipf:2", SHAPE)
    plain, found = asked(ranks=(4,)), asked(ranks=(4,), load=skewed)
    assert found.situations[0].decode and plain.situations[0].decode and found.serving and found.serving.load == skewed
    assert found.situations[0].decode.bytes < plain.situations[0].decode.bytes
    assert found.ranks[0].balance and found.ranks[0].balance.in_order > 1.5
    assert found.ranks[0].reached < plain.ranks[0].reached


def test_what_one_device_does_not_hold_is_split_over_as_many_as_do() -> None:
    huge = mixture(experts=64, layers=32)
    found = estimate(huge, ("bf16",), ("rtx4090", "b200"), (1,), 64, asked=Asked()).serving
    assert found is not None
    (row,) = found.spreads
    assert (row.how, row.device, row.ranks, row.fits) == ("tensor", "rtx4090", 2, True) and row.time is not None
    priced = estimate(huge, ("bf16",), ("rtx4090",), (1,), 64, asked=Asked(prices={"rtx4090": 1.0})).serving
    assert priced and priced.costs[0].devices == 2


def test_experts_that_all_fit_send_nothing_and_that_goes_into_json() -> None:
    found = estimate(SHAPE, ("bf16",), ("h200",), (1,), 64, asked=Asked(offload=("disk",))).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["offloads"][0]["tokens_a_second"] is None


def test_an_idle_replica_has_as_many_devices_as_one_that_works() -> None:
    huge = mixture(experts=64, layers=64)
    found = estimate(huge, ("bf16",), ("rtx4090",), (1,), 64, asked=Asked(prices={"rtx4090": 1.0})).serving
    assert found and [row.devices for row in found.idle] == [row.devices for row in found.costs] == [4]
    vast = mixture(experts=512, layers=64)
    nowhere = estimate(vast, ("bf16",), ("rtx4090",), (1,), 64, asked=Asked(prices={"rtx4090": 1.0})).serving
    assert nowhere and nowhere.idle == ()


def test_the_commands_have_as_many_devices_as_the_traffic_takes() -> None:
    huge = mixture(experts=64, layers=64)
    asked = Asked(model="models/huge/config.json", traffic=Traffic(0.01, 64, 16))
    found = estimate(huge, ("bf16",), ("rtx4090",), (1,), 64, versus=dense(), asked=asked).serving
    assert found and found.traffic[0].devices == 4
    assert all("models/huge " in each.command + " " and "4" in each.command for each in found.servers)


def test_a_recipe_that_comes_first_packs_both_models() -> None:
    def half(shape: Shape) -> Shape:
        tensors = tuple(replace(t, codes=t.count // 2) if len(t.shape) > 1 else t for t in shape.tensors)
        return replace(shape, tensors=tensors)

    other, question = dense(), Asked(traffic=Traffic(2.0, 64, 16))
    found = estimate(
        SHAPE, ("small", "bf16"), ("rtx4090",), (1,), 64, versus=other, asked=question,
        packed={"small": half(SHAPE)}, packed_versus={"small": half(other)},
    )  # fmt: skip
    plain = estimate(SHAPE, ("bf16",), ("rtx4090",), (1,), 64, versus=other)
    for packed, whole in zip(found.beside[0].bytes, plain.beside[0].bytes, strict=True):
        assert packed < 0.3 * whole
    asked_of = Question(found)
    assert asked_of.format.name == "small"
    assert [asked_of.bytes_a_token(s, 1) for s in (SHAPE, other)] == list(found.beside[0].bytes)
    rows = {(s.model, s.format): s.slow for s in found.serving.traffic} if found.serving else {}
    one, whole = rows["Dense", "small"], rows["Dense", "bf16"]
    assert one and whole and one.token_seconds < 0.5 * whole.token_seconds


@pytest.mark.parametrize(
    ("questions", "words"),
    [
        ({"devices": (), "traffic": Traffic(1.0)}, "--device h200"),
        ({"prices": {"h200": 1.0}}, "--device h200"),
        ({"prices": {"h20": 1.0}}, "h200"),
        ({"traffic": Traffic(1.0, 0, 5)}, "--prompt"),
        ({"traffic": Traffic(1.0, 5, 0)}, "--answer"),
        ({"links": ("tape",)}, "--link"),
        ({"offload": ("tape",)}, "--offload"),
        ({"draft": 99}, "--draft"),
    ],
)
def test_questions_that_cannot_be_answered(questions: dict[str, object], words: str) -> None:
    with pytest.raises(MoecError, match="M20") as refused:
        asked(**questions)  # type: ignore[arg-type]
    assert words in str(refused.value) and len(str(refused.value).splitlines()) == 3
