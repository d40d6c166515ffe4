"""`--set`: one option of a pass, or one setting, in the place of what stands in a file, a manifest or `--pass`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from moec.cli.config import read_config
from moec.cli.overrides import overridden
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from tests.cli.test_settings import MODEL
from tests.command_line import Cli

PASSES = "upcycle(experts=2, top_k=1), quantize(bits=4)"


def changed(*texts: str, passes: str = PASSES) -> str:
    return str(overridden({"pipeline": passes}, texts)["pipeline"])


@pytest.mark.parametrize(
    ("text", "pipeline"),
    [
        ("quantize.bits=8", "upcycle(experts=2, top_k=1), quantize(bits=8)"),
        ("upcycle.experts=8", "upcycle(top_k=1), quantize"),  # 8 is the default
        ("quantize.method=hqq", "upcycle(experts=2, top_k=1), quantize(method='hqq')"),
        ("quantize.symmetric=false", "upcycle(experts=2, top_k=1), quantize(symmetric=False)"),
        ("upcycle.layers=every:2", "upcycle(experts=2, top_k=1, layers='every:2'), quantize"),
        ("upcycle.layers=[0, 2]", "upcycle(experts=2, top_k=1, layers=(0, 2)), quantize"),
        ("quantize.recipe.down=8", "upcycle(experts=2, top_k=1), quantize(recipe={'down': 8})"),
        ("quantize.recipe={'down': 8}", "upcycle(experts=2, top_k=1), quantize(recipe={'down': 8})"),
        ("quantize.rules={'*.0.*': 8}", "upcycle(experts=2, top_k=1), quantize(rules={'*.0.*': 8})"),
        ('quantize.rules."*.0.*"=8', "upcycle(experts=2, top_k=1), quantize(rules={'*.0.*': 8})"),
        ("quantize.rules.'*.0.*'.bits=2", "upcycle(experts=2, top_k=1), quantize(rules={'*.0.*': {'bits': 2}})"),
        ("quantize.rules.lm_head.bits=8", "upcycle(experts=2, top_k=1), quantize(rules={'lm_head': {'bits': 8}})"),
    ],
)
def test_an_option_of_a_pass(text: str, pipeline: str) -> None:
    assert changed(text) == str(Pipeline.parse(pipeline))


def test_a_table_keeps_its_other_entries() -> None:
    found = overridden(read_config(Path("int8")), ["quantize.recipe.lm_head=4"])
    (item,) = found["pipeline"]
    assert item.recipe == {"experts": 8, "dense": 8, "attention": 8, "embeddings": 8, "lm_head": 4}
    with pytest.raises(MoecError, match=r"recipe\.experts is no table") as caught:
        overridden(read_config(Path("int8")), ["quantize.recipe.experts.bits=2"])
    assert caught.value.code == "M201" and caught.value.fix == "set recipe.experts itself"
    assert changed('quantize.rules."*.0.*".bits=2', passes="quantize(rules={'*.1.*': 8})") == str(
        Pipeline.parse("quantize(rules={'*.1.*': 8, '*.0.*': {'bits': 2}})")
    )


def test_several_and_what_a_path_needs_no_quotes_for() -> None:
    assert changed("quantize.bits=8", "quantize.group=32").endswith("quantize(bits=8, group=32)")
    assert changed("add-expert.source=a b/med", passes="add-expert") == "add-expert(source='a b/med')"
    assert changed("set_top_k.top_k=2", passes="set-top-k") == "set-top-k(top_k=2)"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("seed=3", "seed", 3),
        ("tolerance=1e-3", "tolerance", 1e-3),
        ("cache=false", "cache", False),
        ("target=onnxruntime:cuda,tf32=true", "target", "onnxruntime:cuda,tf32=true"),
        ('inputs=["x=batch:float32"]', "inputs", ("x=batch:float32",)),
        ("max_ram=2GiB", "max_ram", 2**31),
        ("text=2020", "text", "2020"),
        ("pass=quantize(bits=2)", "pipeline", "quantize(bits=2)"),
    ],
)
def test_a_setting_as_a_file_says_it(text: str, name: str, value: Any) -> None:
    found = overridden({"seed": 1}, [text])
    assert (str(found[name]) if name in ("target", "pipeline") else found[name]) == value
    assert getattr(Options.of(found), name) == getattr(Options.of({"seed": 1, name: value}), name)


def test_a_pass_and_its_options_in_any_order() -> None:
    assert changed("quantize.bits=8", "pass=quantize") == "quantize(bits=8)"


@pytest.mark.parametrize(
    ("texts", "hint"),
    [
        (["quantize.bit=8"], "did you mean bits"),
        (["quantise.bits=8"], "did you mean quantize?"),
        (["quantize.bits=eight"], "bits is int"),
        (["quantize.bits='8'"], "bits is int"),
        (["quantize.bits="], "bits is int"),
        (["quantize.bits=8), find-moe("], "bits is int"),
        (["quantize.bits.x=8"], "set bits itself"),
        (["optimise_for=latency"], "did you mean optimize_for?"),
        (["optimize-for=latency"], "did you mean optimize_for?"),
        (["optimize_for=latncy"], "did you mean latency?"),
        (["seed=x"], "a whole number"),
        (["seed=1", "seed=2"], "say it once"),
        (["tolerance=1"], "say it once"),
        (["seed"], "--set quantize.experts=8"),
        (["=1"], "--set quantize.experts=8"),
        (['quantize.rules."*.0.*".bits=2', "quantize.rules.'*.0.*'.bits=4"], "say it once"),
        (["quantize.rules.*.0.*=8"], "in quotes"),
    ],
)
def test_what_cannot_be_set_is_refused_in_three_lines(texts: list[str], hint: str) -> None:
    with pytest.raises(MoecError) as caught:
        overridden({"pipeline": PASSES, "tolerance": 0.1}, texts, given=["tolerance"])
    assert caught.value.code == "M201" and hint in caught.value.fix and "--set" in caught.value.where
    assert len(str(caught.value).splitlines()) == 3


def test_which_pass_is_meant_has_to_be_plain() -> None:
    with pytest.raises(MoecError, match="2 times"):
        changed("quantize.bits=8", passes="quantize(experts=4), quantize(dense=8)")
    with pytest.raises(MoecError, match="no passes") as caught:
        overridden({}, ["quantize.bits=8"])
    assert '--pass "quantize(bits=8)"' in caught.value.fix


@pytest.mark.parametrize(
    ("text", "pipeline"),
    [
        ("quantize.bits=4", "quantize"),
        ("quantize.recipe.down=8", "quantize(recipe={'down': 8})"),
        ('quantize.rules."*.0.*".bits=2', "quantize(rules={'*.0.*': {'bits': 2}})"),
        ("add-expert.source=a b/med", "add-expert(source='a b/med')"),
        ("add-expert.source=$HOME/it's", 'add-expert(source="$HOME/it\'s")'),
        ("set_top_k.top_k=2", "set-top-k(top_k=2)"),
        ("quantise.bits=8", ""),  # what cannot be built is not advised
        ("quantize.bit=8", ""),
        ("quantize.bits=eight", ""),
    ],
)
def test_the_pass_that_is_advised_is_one_that_can_be_given(text: str, pipeline: str) -> None:
    for has_pass in (True, False):
        with pytest.raises(MoecError, match="no passes") as caught:
            overridden({}, [text], has_pass=has_pass)
        words = caught.value.fix.partition(", or write ")[2]
        assert bool(words) == bool(pipeline and has_pass) and "--config FILE" in caught.value.fix
        if words:
            option, value = shlex.split(words)
            assert option == "--pass" and str(Pipeline.parse(value)) == str(Pipeline.parse(pipeline))


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("quantize.rules.*.experts.*.bits=2", {"*.experts.*": {"bits": 2}}),
        ("quantize.rules.*.0.*={'bits': 8}", {"*.0.*": {"bits": 8}}),
        ("quantize.rules.model.head=8", {"model.head": 8}),
    ],
)
def test_a_pattern_without_quotes_is_answered_with_what_works(text: str, rules: dict[str, Any]) -> None:
    with pytest.raises(MoecError, match="stands without quotes") as caught:
        changed(text)
    option, said = shlex.split(caught.value.fix.partition(": ")[2])
    item = overridden({"pipeline": PASSES}, [said])["pipeline"].passes[1]
    assert option == "--set" and item.rules == rules


# ------------------------------------------------------------------ on the command line
def test_what_was_resolved_is_what_the_manifest_and_a_rebuild_hold(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dense.py").write_text(MODEL)
    model = (f"{tmp_path / 'dense.py'}:Dense", "--input", "ids=batch,sequence:int64<20")
    config = ("--config", "upcycle-8x2", "--set", "upcycle.experts=2", "--set", "upcycle.top_k=1", "--set", "seed=5")
    first = cli.json("compile", *model, "-o", tmp_path / "first", *config)["report"]["settings"]
    assert first["pipeline"] == "upcycle(experts=2, top_k=1)" and first["seed"] == 5
    again = ("compile", "--from", tmp_path / "first", "--set", "upcycle.experts=4", "--trust-remote-code")
    second = cli.json(*again, "-o", tmp_path / "second")["report"]["settings"]
    assert second == {**first, "pipeline": "upcycle(experts=4, top_k=1)"}
    cli(*again, "-o", tmp_path / "third", "--gen-script", tmp_path / "again.py")
    assert "pipeline='upcycle(experts=4, top_k=1)'" in (tmp_path / "again.py").read_text()
    assert "M112" in cli("check", tmp_path / "first", "--set", "seed=6", "--trust-remote-code", status=1)
    cli("check", tmp_path / "first", *config, "--trust-remote-code")


def test_a_plan_takes_the_same(cli: Cli, llama: Path, tmp_path: Path) -> None:
    (said,) = cli.json("plan", llama, "--config", "upcycle-8x2", "--set", "upcycle.experts=4")["compile"]
    assert said["steps"][0]["name"] == "upcycle(experts=4)" and said["target"] == "onnxruntime"
    cli("plan", llama, "--config", "upcycle-8x2", "--set", "upcycle.expert=4", status=2)
    assert "did you mean experts?" in cli.err
    (tmp_path / "mine.toml").write_text('seed = 1\n[[pass]]\nname = "upcycle"\n')
    for config in ((), ("--config", tmp_path / "mine.toml")):  # a file may say what a plan does not read
        cli("plan", llama, *config, "--set", "seed=3", status=2)
        assert "M201" in cli.err and "seed is nothing to a plan" in cli.err
    assert cli.json("plan", llama, "--config", tmp_path / "mine.toml")["compile"]
    cli("check", tmp_path, "--set", "quantize.bits=8", status=2)
    assert "name them with --config FILE" in cli.err and "--pass" not in cli.err


@pytest.mark.parametrize("preset", ["int8", "int4", "balanced", "small"])
def test_bits_that_nothing_takes_are_refused(preset: str) -> None:
    """A recipe says those of every kind."""
    settings = {"pipeline": read_config(Path(preset))["pipeline"]}
    with pytest.raises(MoecError, match="nothing takes these bits") as caught:
        overridden(settings, ["quantize.bits=4"])
    assert caught.value.code == "M201" and "quantize.experts=8" in caught.value.fix
    assert "experts=8" in str(overridden(settings, ["quantize.experts=8"])["pipeline"])


def test_bits_beside_a_recipe_of_some_kinds_are_taken() -> None:
    assert "bits=8" in changed("quantize.bits=8", passes="quantize(recipe={'down': 4})")
