"""Routers of a model on texts: `moec.routers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moec
from moec.compiler import routers as module
from moec.errors import MoecError
from tests import zoo


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Tokens of the lower and of the upper half of the vocabulary."""
    found, generator = {}, np.random.default_rng(0)
    for name, low, high in (("law", 3, 20), ("code", 60, 90)):
        found[name] = tmp_path / f"{name}.npy"
        np.save(found[name], generator.integers(low, high, 300))
    return found


def collapsed() -> Any:
    """A Mixtral whose first router sends everything to experts 2 and 5: rows that point along every token's hidden
    state alike are 0, so the choice is by the lowest numbers among equals; a dead one is told by rows of its own."""
    model: Any = zoo.build("mixtral")
    with torch.no_grad():
        norm, gate = model.model.layers[0].post_attention_layernorm, model.model.layers[0].mlp.gate
        norm.weight.zero_()  # the router reads zeros: all logits are equal, and top-k takes the same experts always
        gate.weight.mul_(1)
    return model


def opened(model: Any) -> dict[str, Any]:
    return {"model": model, "inputs": {"input_ids": torch.randint(3, 90, (2, 9))}}


def test_figures_of_two_texts(texts: dict[str, Path]) -> None:
    found = moec.routers(**opened(zoo.build("mixtral")), texts=texts, window=32)
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
    found = moec.routers(**opened(zoo.build("mixtral")), texts=[texts["law"], tmp_path / "copy.npy"], window=32)
    special = found.layers[0].specialisation
    assert special is not None and special.corrected_bits < 0.05


def test_a_collapsed_router_is_told(texts: dict[str, Path]) -> None:
    found = moec.routers(**opened(collapsed()), texts=texts["law"], window=32)
    first, second = found.layers
    assert max(first.load) == 0.5 and len(first.dead) == 6 and len(second.dead) < 6
    kinds = {alarm.kind for alarm in found.alarms if alarm.layer == first.layer}
    assert {"collapse", "dead", "indifferent"} <= kinds


def test_groups_of_windows_give_the_same_sums(texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = moec.routers(**opened(zoo.build("mixtral")), texts=texts, window=32)
    monkeypatch.setattr(module, "_AT_ONCE", 128)
    parts = moec.routers(**opened(zoo.build("mixtral")), texts=texts, window=32)
    assert [f.load for f in parts.layers] == [f.load for f in whole.layers]
    assert [f.reuse for f in parts.layers] == [f.reuse for f in whole.layers]
    few = moec.routers(**opened(zoo.build("mixtral")), texts=texts, window=32, tokens=64)
    assert few.layers[0].tokens == 128 and few.layers[0].load != whole.layers[0].load


def test_two_checkpoints_side_by_side(texts: dict[str, Path]) -> None:
    model, tuned = zoo.build("mixtral"), zoo.build("mixtral")
    with torch.no_grad():
        tuned.model.layers[1].mlp.gate.weight.copy_(tuned.model.layers[1].mlp.gate.weight.flip(0))
    same = moec.routers(**opened(model), texts=texts, window=32, versus=model).drift
    assert [(d.agreement, d.same, d.total_variation) for d in same] == [(1, 1, 0)] * 2
    first, second = moec.routers(**opened(model), texts=texts, window=32, versus=tuned).drift
    assert first.same == 1 and second.same < 0.5 and second.agreement < 0.6 and second.total_variation > 0.05


def test_what_cannot_be_looked_at_is_refused(texts: dict[str, Path], tmp_path: Path) -> None:
    mixtral = opened(zoo.build("mixtral"))
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "moec.json").write_text("{}")
    cases: list[tuple[dict[str, Any], str]] = [
        ({**opened(zoo.build("llama")), "texts": texts}, "no mixture"),
        ({"model": tmp_path / "engine", "texts": texts}, "an engine"),
        ({**mixtral, "texts": []}, "no text"),
        ({**mixtral, "texts": [texts["law"], tmp_path / "law.npy"]}, "one name"),
        ({**mixtral, "texts": texts, "tokens": -1}, "-1 in all"),
        ({**mixtral, "texts": texts, "versus": zoo.build("deepseek_v3")}, "do not match"),
    ]
    for arguments, says in cases:
        with pytest.raises(MoecError, match=says) as caught:
            moec.routers(**arguments)
        assert caught.value.code == "M201" and caught.value.fix
