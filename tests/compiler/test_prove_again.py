"""Engines that exist are proven again, and a spoiled one is found out down to its layer and expert."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moec import api
from moec.compiler.prove_again import bisect_engine, prove_again
from moec.errors import MoecError
from tests.spoiling import spoil
from tests.zoo import save


@pytest.fixture(scope="module")
def spoiled(mixtral_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoil(mixtral_engine, tmp_path_factory.mktemp("engines") / "spoiled")


def test_a_good_engine_is_proven_on_other_inputs(mixtral_engine: Path) -> None:
    proof = prove_again(mixtral_engine, None, 5, None, {})
    assert proof.ok and proof.seed == 5 and proof.coverage.complete
    assert not prove_again(mixtral_engine, None, 5, 1e-12, {}).ok  # the twin: not even rounding is allowed


def test_a_spoiled_engine_is_found_out(mixtral_engine: Path, spoiled: Path) -> None:
    assert not prove_again(spoiled, None, 1, None, {}).ok
    assert not prove_again(spoiled, mixtral_engine, 1, None, {}).ok
    assert prove_again(spoiled, spoiled, 1, None, {}).ok


def test_bisection_names_the_layer_and_the_expert(mixtral_engine: Path, spoiled: Path) -> None:
    found = bisect_engine(spoiled, 1, {})
    assert found.stage == "the backend's lowering" and [s.ok for s in found.stages] == [True] * (
        len(found.stages) - 1
    ) + [False]
    assert "layers.1" in found.layer and found.experts == (5,) and 0 < found.wrong_tokens < found.tokens
    assert bisect_engine(mixtral_engine, 1, {}).stage == ""


def test_against_another_model(mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> None:
    assert prove_again(mixtral_engine, str(mixtral), 1, None, {}).ok
    assert not prove_again(mixtral_engine, save("mixtral", tmp_path / "other", seed=9), 1, None, {}).ok


def test_a_changed_source_is_refused(mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> None:
    engine, model = (
        Path(shutil.copytree(mixtral_engine, tmp_path / "engine")),
        Path(shutil.copytree(mixtral, tmp_path / "model")),
    )
    manifest = engine / "moec.json"
    manifest.write_text(manifest.read_text().replace(str(mixtral), str(model)))
    assert api.verify(engine).ok
    save("mixtral", model, seed=9)
    for prove in (lambda: api.verify(engine), lambda: api.rebuild(manifest, tmp_path / "again")):
        with pytest.raises(MoecError, match=r"model\.safetensors") as caught:
            prove()
        assert caught.value.code == "M106"
