"""Routers of a model on texts: `moec.routers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moec
from moec.compiler import routers as module
from moec.errors import MoecError
from moec.frontend.domain import Domain
from moec.frontend.program_source import ProgramSource
from moec.program.program import Program
from tests import zoo


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Tokens of the lower and of the upper half of the vocabulary."""
    found, generator = {}, np.random.default_rng(0)
    for name, low, high in (("law", 3, 20), ("code", 60, 90)):
        found[name] = tmp_path / f"{name}.npy"
        np.save(found[name], generator.integers(low, high, 300))
    return found


def with_weight(name: str, change: Callable[[Tensor], Tensor]) -> Program:
    """The Mixtral's program with one weight changed."""
    program = zoo.captured("mixtral")
    return program.trained({name: change(program.weights[name].load().clone())})


def test_figures_of_two_texts(texts: dict[str, Path]) -> None:
    found = moec.routers(zoo.captured("mixtral"), texts=texts, window=32)
    assert [t.name for t in found.texts] == ["law", "code"] and {t.tokens for t in found.texts} == {288}
    first = found.layers[0]
    assert first.layer == "model.layers.0.mlp.experts" and first.tokens == 576
    assert sum(first.load) == pytest.approx(1) and sum(first.gate_mass) == pytest.approx(1)
    assert first.specialisation is not None and first.specialisation.corrected_bits > 0.05
    assert first.domains.keys() == {"law", "code"} and first.similarity is not None
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["layers"][0]["load"] == list(first.load) and plain["thresholds"]["starved"] == 0.1


def test_the_same_text_twice_has_no_domains_to_know(texts: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "copy.npy", np.random.default_rng(1).integers(3, 20, 300))
    found = moec.routers(zoo.captured("mixtral"), texts=[texts["law"], tmp_path / "copy.npy"], window=32)
    special = found.layers[0].specialisation
    assert special is not None and special.corrected_bits < 0.05


def test_a_collapsed_router_is_told(texts: dict[str, Path]) -> None:
    zeros = with_weight("model.layers.0.post_attention_layernorm.weight", torch.zeros_like)  # all logits are equal
    found = moec.routers(zeros, texts=texts["law"], window=32)
    first, second = found.layers
    assert max(first.load) == 0.5 and len(first.dead) == 6 and len(second.dead) < 6
    kinds = {alarm.kind for alarm in found.alarms if alarm.layer == first.layer}
    assert {"collapse", "dead", "indifferent"} <= kinds


def test_groups_of_windows_give_the_same_sums(texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = moec.routers(zoo.captured("mixtral"), texts=texts, window=32)
    monkeypatch.setattr(module, "_AT_ONCE", 128)
    parts = moec.routers(zoo.captured("mixtral"), texts=texts, window=32)
    assert [f.load for f in parts.layers] == [f.load for f in whole.layers]
    assert [f.reuse for f in parts.layers] == [f.reuse for f in whole.layers]
    few = moec.routers(zoo.captured("mixtral"), texts=texts, window=32, tokens=64)
    assert few.layers[0].tokens == 128 and few.layers[0].load != whole.layers[0].load


def test_two_checkpoints_side_by_side(texts: dict[str, Path]) -> None:
    model = zoo.captured("mixtral")
    tuned = with_weight("model.layers.1.mlp.gate.weight", lambda weight: weight.flip(0))
    first, second = moec.routers(model, texts=texts, window=32, versus=tuned).drift
    assert (first.agreement, first.same, first.total_variation) == (1, 1, 0)
    assert second.same < 0.5 and second.agreement < 0.6 and second.total_variation > 0.05


def test_what_cannot_be_looked_at_is_refused(texts: dict[str, Path], tmp_path: Path, mixtral: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "moec.json").write_text("{}")
    upcycled, _ = moec.Pipeline.parse("upcycle(experts=4, top_k=2)").run(zoo.captured("llama"))
    narrow = ProgramSource(zoo.captured("mixtral"))
    narrow.domains["input_ids"] = Domain("token", 50)
    given = {"model": zoo.captured("mixtral"), "texts": texts}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": zoo.captured("llama"), "texts": texts}, "no mixture"),
        ({"model": tmp_path / "engine", "texts": texts}, "an engine"),
        ({**given, "texts": []}, "no text"),
        ({**given, "texts": [texts["law"], tmp_path / "law.npy"]}, "one name"),
        ({**given, "tokens": -1}, "--tokens -1"),
        ({**given, "window": 0}, "--window 0"),
        ({"model": mixtral, "texts": texts["law"], "window": 1_000_000}, "end at 256 tokens"),
        ({**given, "versus": upcycled}, "do not match"),
        ({**given, "versus": narrow}, "the same tokens"),
    ]
    for arguments, says in cases:
        with pytest.raises(MoecError, match=says) as caught:
            moec.routers(**arguments)
        assert caught.value.code == "M201" and caught.value.fix
