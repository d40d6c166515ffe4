"""Tensors are kept by what they were computed from: equal inputs are not computed again, others are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moec import version
from moec.files import kept
from moec.weights.remembered import keep, key_of, recall, remembered, sources_hash


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_a_key_depends_on_all_that_it_is_given() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    one = key_of("a", x)
    others = [
        key_of("b", x),
        key_of("a", x.t()),
        key_of("a", x.reshape(3, 2)),
        key_of("a", x.double()),
        key_of("a", x + torch.tensor([0.0, 0.0, 1e-6])),
        key_of("a", x, x),
    ]
    assert len({one, *others}) == len(others) + 1 and one == key_of("a", x.t().contiguous().t())


def test_a_key_depends_on_all_of_moecs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of("a")
    changed = shutil.copytree(Path(version.__file__).parent, tmp_path / "moec", ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(version, "__file__", str(changed / "version.py"))
    assert key_of("a") == before, "the same code elsewhere"
    with (changed / "dialect" / "dequantize.py").open("a") as file:
        file.write("# packs otherwise now\n")
    sources_hash.cache_clear()
    assert key_of("a") != before


def test_it_is_made_once() -> None:
    calls = []

    def make() -> dict[str, Tensor]:
        calls.append(1)
        return {"codes": torch.arange(5, dtype=torch.uint8), "scale": torch.randn(3).bfloat16().expand(2, 3)}

    key, expected = key_of("x"), {"codes": ((5,), torch.uint8), "scale": ((2, 3), torch.bfloat16)}
    first, second = remembered(key, expected, make), remembered(key, expected, make)
    assert len(calls) == 1 and all(torch.equal(first[n], second[n]) for n in ("codes", "scale"))
    assert second["scale"].dtype == torch.bfloat16
    keep(key, {**make(), "codes": torch.zeros(1, dtype=torch.uint8)})  # it would be broadcast
    assert torch.equal(remembered(key, expected, make)["codes"], first["codes"]) and len(calls) == 3


def test_what_is_no_tensors_is_made_anew() -> None:
    key = key_of("y")
    kept.write(key, b"whole, but not tensors")
    assert recall(key) is None
    keep(key, {"x": torch.ones(2)})
    found = recall(key)
    assert found is not None and torch.equal(found["x"], torch.ones(2))
