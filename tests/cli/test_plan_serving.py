"""`moec plan`: what it says about serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moec.cli.plan_serving import _price
from tests.command_line import Cli
from tests.planning import configs

SMALL = configs.QWEN3_30B | {"num_hidden_layers": 2, "num_experts": 16, "num_experts_per_tok": 2}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return configs.write(tmp_path, SMALL)


def test_traffic_price_draft_offload_and_ranks_in_one_answer(cli: Cli, model: Path, tmp_path: Path) -> None:
    load = tmp_path / "load.json"
    load.write_text(json.dumps({"layers": [{"layer": "x", "load": [9, *[1] * 15]}] * 2}))
    page = tmp_path / "page.html"
    words = "--device rtx4090 --batch 1,8 --traffic 20rps --prompt 500 --answer 100 --price rtx4090=0.5 --draft 3"
    text = cli(
        "plan",
        model,
        *words.split(),
        "--offload",
        "disk",
        "--ranks",
        "4",
        "--load",
        load,
        "--link",
        "1GB/s",
        "--html",
        page,
    )
    assert "Experts on several devices" in page.read_text() and "Ways to use several devices" in page.read_text()
    for heading in ("replicas", "first token", "a million tokens", "pays from", "each holds", "remote ones"):
        assert heading in text, heading
    assert "idle: 1 rtx4090 holds" in text and "365 a month of 730 hours" in text
    assert "over 1GB/s (1 GB/s)" in text and "the busiest has" in text and "every expert fits" in text
    assert f"vllm serve {model.parent} --tensor-parallel-size 4 --enable-expert-parallel  (listed for" in text
    assert "times: roofline" in text and "Traceback" not in text


def test_json_holds_intervals_and_origins(cli: Cli, model: Path) -> None:
    found = cli.json("plan", model, "--device", "rtx4090", "--traffic", "90rpm", "--load", "zipf:1.0")
    (served,) = found["traffic"]
    assert served["tokens_a_second"] == 1.5 * 256 and served["origin"].startswith("roofline")
    assert served["fast"]["token_seconds"] < served["slow"]["token_seconds"]
    assert found["load"] == {"name": "zipf:1.0", "power": 1.0, "layers": []}
    assert found["loading"][0]["seconds"] > 0 and {s["listed"] for s in found["servers"]} == {True}


def test_offloaded_experts_of_a_large_model(cli: Cli, model: Path) -> None:
    text = cli("plan", model, "--offload", "ram,disk", "--batch", "4")
    assert "pcie4, 32 GB/s" in text and "nvme, 5 GB/s" in text and "tokens/s" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--traffic 20rps", "--device h200"),
        ("--traffic many --device h200", "20rps"),
        ("--traffic 1rps --device h200 --prompt 0", "--prompt"),
        ("--traffic 1rps --device h200 --prompt 40961", "shorter --prompt"),
        ("--price h200", "h200=3.5"),
        ("--price h20=1", "h200"),
        ("--price h200=1", "--device h200"),
        ("--draft 0", "--draft 3"),
        ("--prompt 500", "--traffic 20rps"),
        ("--device h200 --answer 5", "--traffic 20rps"),
        ("--batch -1", "-1 is below 1"),
        ("--link tape", "7GB/s"),
        ("--offload tape", "--offload"),
        ("--load zipf:x", "zipf:1.0"),
        ("--load none.json", "moec routers"),
    ],
)
def test_bad_questions_get_three_lines(cli: Cli, model: Path, arguments: str, words: str) -> None:
    cli("plan", model, *arguments.split(), status=2)
    assert words in cli.err and len(cli.err.strip().splitlines()) == 3


def test_small_figures_keep_their_digits_and_what_is_named_twice_stands_once(cli: Cli, model: Path) -> None:
    asked = "--device h200,h200 --batch 1,1,512 --traffic 1rps --price h200=0.1 --link 100GB/s"
    text = cli("plan", model, *asked.split())
    assert "at least less than" not in text and " ms over" in text
    rows = [line for line in text.splitlines() if "bf16 " in line]
    assert rows and len(rows) == len(set(rows))
    assert _price(0.0012, 0.0087) == "0.0012–0.0087" and _price(0.25, 1.5) == "0.25–1.50"
