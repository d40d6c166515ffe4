"""`moec plan`."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from tests.command_line import Cli
from tests.planning import configs


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_a_config_alone_is_enough(cli: Cli, tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.QWEN3_30B)
    text = cli("plan", path, "--device", "h200,rtx4090", "--format", "bf16,int4", "--batch", "1,8")
    assert "30,532,122,624" in text and "3.04 B without the input embedding" in text
    assert "48 mixtures: 128 experts, 8 a token" in text and "rtx4090" in text and "tokens/s" in text


def test_json_holds_the_same(cli: Cli, tmp_path: Path) -> None:
    found = cli.json("plan", configs.write(tmp_path, configs.DEEPSEEK_V3), "--format", "fp8")
    assert found["parameters"]["total"] == 671_026_404_352
    assert found["parameters"]["multi_token_prediction"] > 11e9
    assert found["situations"][0]["memory"]["weights"] < found["parameters"]["total"] * 1.01
    assert found["situations"][0]["device"] is None and found["situations"][0]["devices"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "two"], "--batch"),
        (["--device", "rtx4080"], "rtx4090"),
        (["--format", "int3"], "int4"),
        (["--context", "999999"], "--context 32768"),
        (["--context", "0"], "--context"),
        (["--format", ""], "--format"),
        (["--state", "fp9"], "fp8"),
    ],
)
def test_bad_questions_get_three_lines(cli: Cli, tmp_path: Path, arguments: list[str], words: str) -> None:
    cli("plan", configs.write(tmp_path, configs.MIXTRAL), *arguments, status=2)
    assert words in cli.err and len(cli.err.strip().splitlines()) == 3


def test_two_models_and_ranks(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mixture, dense = configs.write(tmp_path / "a", configs.MIXTRAL), configs.write(tmp_path / "b", configs.LLAMA_70B)
    text = cli("plan", mixture, "--versus", dense, "--ranks", "2,8")
    assert "dense or mixture → mixture: beside LlamaForCausalLM (70.6 B)" in text and "reached by a token" in text
    found = cli.json("plan", mixture, "--versus", dense, "--ranks", "8")
    assert found["versus"]["parameters"]["total"] == 70_553_706_496 and len(found["beside"]) == 11
    assert found["advice"][0]["rule"] == "dense or mixture" and found["advice"][0]["figures"]["bytes"] < 27e9
    assert found["expert_parallel"][0]["ranks"] == 8
    cli("plan", mixture, "--ranks", "3", status=2)
    assert "--ranks 2" in cli.err


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_a_terminal_and_nothing_is_cut(
    columns: int, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configs.write(tmp_path, configs.MIXTRAL)
    asked = ("plan", path, "--device", "h200,rtxpro6000", "--format", "bf16,int4-g128-zero", "--batch", "1,512")
    asked = (*asked, "--ranks", "2,8", "--versus", path)
    piped = cli(*asked)
    monkeypatch.setattr("moec.cli.terminal.Terminal.is_live", lambda *_: True)
    for name, value in (("COLUMNS", str(columns)), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    shown = re.sub(r"\x1b\[\d*m", "", cli(*asked))
    sentences = [line for line in shown.splitlines() if str(tmp_path) not in line]  # commands are copied, so not broken
    assert max(map(len, sentences)) <= columns and "\x1b" not in shown

    def letters(text: str) -> Counter[str]:
        return Counter(re.sub(r"[\s─]", "", text))

    assert letters(shown) == letters(piped)


def test_a_page_takes_the_place_of_its_own_kind_only(cli: Cli, tmp_path: Path) -> None:
    path, page = configs.write(tmp_path, configs.LLAMA_1B | {"num_hidden_layers": 1}), tmp_path / "page.html"
    for _ in range(2):
        cli("plan", path, "--html", page)
    assert "<title>moec plan: LlamaForCausalLM" in page.read_text()
    for others in ("<html>mine</html>", "<!doctype html>\n<html lang=en><title>moec: a report", "plan\n"):
        page.write_text(others)
        cli("plan", path, "--html", page, status=2)
        assert page.read_text() == others and "M210" in cli.err and len(cli.err.strip().splitlines()) == 3
    cli("plan", path, "--html", tmp_path / "none" / "page.html", status=2)
    assert "M210" in cli.err


def test_a_target_that_takes_it_gets_a_command_and_one_that_does_not_a_reason(cli: Cli, tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.LLAMA_1B | {"num_hidden_layers": 1})
    text = cli("plan", path, "-t", "onnxruntime", "-t", "onnxruntime:x=1")
    assert f"moec compile {path} --target onnxruntime" in text
    ends = r"  \d\d seconds \(a core of its own, no proof\) to \d minutes \(cores that others use too, a proof\),"
    assert re.search(rf"{ends}\n  longer where passes fit", text)
    assert "onnxruntime:x=1: refused" in text and "fix: options are precision=" in text


def test_a_preset_stays_its_name_in_the_command(cli: Cli, tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.MIXTRAL | {"num_hidden_layers": 1})
    asked = ("--config", "int4", "--set", "quantize.group=32", "--set", "target=onnxruntime:cpu")
    command = cli("plan", path, *asked).splitlines()[-1].strip()
    words = f"moec compile {path} --target onnxruntime:cpu --config int4 --set quantize.group=32 -o engine/"
    assert command == words
    script = tmp_path / "script.py"
    cli(*shlex.split(command)[1:], "--gen-script", script)  # it is taken as it stands
    compile(script.read_text(), script, "exec")
    assert "method='hqq'" in script.read_text().replace('"', "'") and "32" in script.read_text()


def test_another_model_has_positions_of_its_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    short = configs.write(tmp_path / "b", configs.LLAMA_1B | {"max_position_embeddings": 64})
    cli("plan", configs.write(tmp_path / "a", configs.MIXTRAL), "--versus", short, "--context", "200", status=2)
    assert "--context 64" in cli.err


def test_a_file_of_weights_is_no_config(cli: Cli, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(2**34)  # is never read into memory
    cli("plan", weights, status=2)
    assert "M204" in cli.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{not json", "not a JSON object"),
        ("[1, 2]", "it holds a list"),
        ("{}", "hidden_size, num_hidden_layers, num_attention_heads, vocab_size, intermediate_size"),
        ('{"model_type": "mixtral", "num_experts_per_tok": 9}', "9 of 8 experts"),
        ('{"model_type": "mixtral", "hidden_size": 4097, "num_attention_heads": 32}', "4097"),
        ('{"model_type": "mixtral", "num_hidden_layers": -1}', "num_hidden_layers = -1"),
        ('{"model_type": "mixtral", "hidden_size": "wide"}', "hidden_size"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers"),
    ],
)
def test_bad_configs_get_three_lines(cli: Cli, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    cli("plan", path, status=2)
    assert words in cli.err and len(cli.err.strip().splitlines()) == 3


def test_a_rumour_is_called_one(cli: Cli, tmp_path: Path) -> None:
    path = configs.write(
        tmp_path, {key: value for key, value in configs.MIXTRAL.items() if key not in ("model_type", "architectures")}
    )
    path.write_text(path.read_text().replace("{", '{"moec_name": "X-1", "moec_source": "rumour", ', 1))
    text = cli("plan", path)
    assert "X-1: 46.7 B" in text and "note: X-1: sizes written by hand (rumour), not a checkpoint" in text
    assert cli.json("plan", path)["notes"][0].startswith("X-1: sizes written by hand (rumour)")


def test_state_and_page_go_with_recipes(cli: Cli, tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.LLAMA_1B | {"num_hidden_layers": 1})
    arguments = ("plan", path, "--format", "balanced,bf16", "--device", "h200", "--html", tmp_path / "page.html")
    halves = [cli.json(*arguments, "--state", state)["situations"][0]["memory"]["state"] for state in ("bf16", "fp8")]
    assert halves[0] == 2 * halves[1] > 0 and "balanced" in (tmp_path / "page.html").read_text()
