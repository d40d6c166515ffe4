"""The name is the registry: a file, its class and its name on the command line."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from moec import registry
from moec.errors import MoecError
from moec.frontend.source import Source
from moec.pipeline.passes import Pass, kebab
from tests.third_party import install

ROOT = Path(__file__).parents[1]


def test_every_file_of_passes_is_a_pass_of_its_name() -> None:
    files = {p.stem.replace("_", "-") for p in (ROOT / "passes").glob("*.py") if p.stem != "__init__"}
    assert files <= set(registry.names("passes"))
    for name in files:
        cls = registry.find("passes", name)
        assert issubclass(cls, Pass) and kebab(cls.__name__) == name


def test_backends() -> None:
    assert "onnxruntime" in registry.names("backends")
    assert registry.find("backends", "onnxruntime")().name == "onnxruntime"


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ("passes", "backends") for name in registry.names(group)]
)
def test_what_a_class_says_of_itself_stands_in_its_source(group: registry.Group, name: str) -> None:
    said = inspect.getdoc(registry.find(group, name))
    assert said and registry._doc_in_source(*registry._place(group, name)) == said == registry.doc(group, name)


def test_a_class_whose_source_does_not_tell_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "class Said:\n    'Read as it stands.'\nMade = type('Made', (), {'__doc__': 'Made by a call.'})\n"
    install(tmp_path, monkeypatch, code, passes="made = theirs:Made\nsaid = theirs:Said")
    assert registry._doc_in_source("theirs", "Said") == registry.doc("passes", "said") == "Read as it stands."
    assert "theirs" not in sys.modules and registry._doc_in_source("theirs", "Made") == ""
    assert registry.doc("passes", "made") == "Made by a call."


@pytest.mark.parametrize(
    ("group", "name", "hint"),
    [("passes", "fuse_moe", "fuse-moe"), ("passes", "upcyle", "upcycle"), ("backends", "onxruntime", "onnxruntime")],
)
def test_a_near_name_is_hinted_at(group: registry.Group, name: str, hint: str) -> None:
    with pytest.raises(MoecError) as caught:
        registry.find(group, name)
    assert caught.value.code == "M202"
    assert f"did you mean {hint}" in caught.value.fix


def test_without_a_near_name_all_are_listed() -> None:
    assert registry.did_you_mean("zzz", ["alpha", "beta"]) == "there are alpha, beta"
    assert registry.did_you_mean("zzz", []) == "there are none"


def test_a_third_partys_entry_point_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "class Prune: pass\n", passes="prune = theirs:Prune")
    assert "prune" in registry.names("passes")
    assert registry.find("passes", "prune").__module__ == "theirs"


def test_sources_are_asked_in_their_order_and_third_parties_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = ["program", "python-file", "exported-program", "huggingface", "module"]
    assert registry.names("sources") == built_in
    assert all(issubclass(registry.find("sources", name), Source) for name in built_in)
    install(tmp_path, monkeypatch, "class Weights: pass\n", sources="zz-weights = theirs:Weights")
    assert registry.names("sources") == ["zz-weights", *built_in]
    assert registry.find("sources", "zz-weights").__module__ == "theirs"


def test_what_backends_share_is_no_target() -> None:
    assert not {"onnx"} & set(registry.names("backends"))
    with pytest.raises(MoecError) as caught:
        registry.find("backends", "onnx")
    assert caught.value.code == "M202"
