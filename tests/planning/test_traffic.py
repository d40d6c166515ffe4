"""Requests that arrive by themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import accumulate

import pytest

from moec.errors import MoecError
from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.pace import decode_time, prompt_time
from moec.planning.traffic import BUSY, Traffic, read_rate, serve
from tests.planning.shapes import dense, mixture

BF16, DEVICE = FORMATS["bf16"], devices()["rtx4090"]  # nobody's tables hold it: the roofline everywhere
SHAPE = mixture(layers=16)


@pytest.mark.parametrize(
    ("text", "rate"), [("20rps", 20), ("20", 20), ("90 rpm", 1.5), ("0.5/s", 0.5), ("30/min", 0.5)]
)
def test_rates(text: str, rate: float) -> None:
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["", "many", "0rps", "-1", "20 per second", "1e9"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(MoecError, match=r"M201[\s\S]*20rps"):
        read_rate(text)


def simulated(rate: float, answer: int, step: Callable[[int], float], prompt: float) -> tuple[float, float]:
    """One server, event by event: a prompt stops the steps, a step serves every text that is there. Returns the mean
    number of texts and the mean time from one token to the next."""
    generator, now, area, tokens = random.Random(0), 0.0, 0.0, 0
    arrivals = list(accumulate(generator.expovariate(rate) for _ in range(1500)))[::-1]
    texts: list[int] = []
    while arrivals or texts:
        if arrivals and arrivals[-1] <= now:
            arrivals.pop()
            took, area = prompt, area + prompt * len(texts)
            texts.append(answer)
        elif texts:
            took = step(len(texts))
            area, tokens = area + took * len(texts), tokens + len(texts)
            texts = [left - 1 for left in texts if left > 1]
        else:
            took = arrivals[-1] - now
        now += took
    return area / now, area / tokens


def test_the_batch_is_what_a_simulated_server_has() -> None:
    """Little's law with prompts in between, beside an event by event run with the same step times."""

    @cache
    def step(batch: int) -> float:
        return decode_time(SHAPE, BF16, DEVICE, batch, 512 + 32).high

    found = serve(SHAPE, BF16, DEVICE, Traffic(40.0, 512, 64))
    assert found.slow is not None and found.slow.replicas == 1 and found.slow.batch > 3
    texts, token = simulated(40.0, 64, step, prompt_time(SHAPE, BF16, DEVICE, 1, 512).high)
    assert found.slow.batch == pytest.approx(texts, rel=0.05) != pytest.approx(1.2 * texts, rel=0.05)
    assert found.slow.token_seconds == pytest.approx(token, rel=0.05)


def test_little_s_law_holds() -> None:
    traffic = Traffic(500.0, 1000, 200)
    found = serve(SHAPE, BF16, DEVICE, traffic)
    for run in (found.fast, found.slow):
        assert run is not None and run.replicas > 1
        assert run.batch == pytest.approx(500 / run.replicas * 200 * run.token_seconds, rel=1e-3)
        assert run.busy <= BUSY and run.batch <= found.largest_batch
        assert run.first_token_seconds > prompt_time(SHAPE, BF16, DEVICE, 1, 1000).low
    assert found.fast and found.slow and found.fast.replicas <= found.slow.replicas
    assert found.tokens_a_second == 500 * 200


def test_twice_the_traffic_needs_twice_the_replicas_at_the_same_price() -> None:
    one, two = (serve(SHAPE, BF16, DEVICE, Traffic(r, 1000, 200), price=2.0).slow for r in (1000.0, 2000.0))
    assert one and two and two.replicas == pytest.approx(2 * one.replicas, abs=1)
    assert one.cost_a_million == pytest.approx(two.cost_a_million, rel=0.1)
    assert one.cost_an_hour == 2.0 * one.replicas
    assert one.cost_a_million == pytest.approx(one.cost_an_hour / (1000 * 200 * 3600 / 1e6))


def test_little_traffic_needs_one_replica_that_idles() -> None:
    found = serve(SHAPE, BF16, DEVICE, Traffic(0.01, 100, 10))
    assert found.fast and found.fast.replicas == 1 and found.fast.busy < 0.01 and found.fast.batch < 0.1
    assert found.fast.cost_a_million is None


def test_a_replica_has_as_many_devices_as_hold_it() -> None:
    huge = mixture(experts=64, layers=32)  # 13 GB of experts a bit
    found = serve(huge, BF16, DEVICE, Traffic(1.0, 100, 10))
    assert found.devices in (2, 4, 8) and "devices" in found.origin
    none = serve(mixture(experts=512, layers=64), BF16, DEVICE, Traffic(1.0, 100, 10))
    assert none.devices == 0 and none.slow is None


def test_texts_beyond_the_model_and_models_without_texts() -> None:
    with pytest.raises(MoecError, match=r"M201[\s\S]*--answer 192"):
        serve(SHAPE, BF16, DEVICE, Traffic(1.0, 8000, 500))
    encoder = type(SHAPE)(**{**vars(dense()), "states": ()})
    with pytest.raises(MoecError, match="writes no answers"):
        serve(encoder, BF16, DEVICE, Traffic(1.0))
