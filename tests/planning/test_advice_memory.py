"""Rules about memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.planning.formats import FORMATS, stored_bytes
from moec.planning.on_cpu import this_machine
from moec.planning.probed import keep
from tests.planning import configs
from tests.planning.records import own_cache, record
from tests.planning.shapes import mixture
from tests.planning.test_advice import advice, shape


def test_a_mixture_holds_all_and_computes_with_few(tmp_path: Path) -> None:
    (found,) = advice("holds", shape(tmp_path, configs.DEEPSEEK_V3), ("fp8",))
    assert found.figures["ratio"] == pytest.approx(671.03 / 37.55, rel=1e-3) and "17.9 times" in found.text
    assert advice("holds", shape(tmp_path, configs.LLAMA_70B)) == []


def test_70_billion_do_not_need_eight_devices(tmp_path: Path) -> None:
    """140 GB in 16 bits are two devices of 80, and in 4 bits one."""
    llama = shape(tmp_path, configs.LLAMA_70B)
    (found,) = advice("fits", llama, ("bf16",), ("h100",), (1,))
    assert found.verdict == "int8 would fit" and "bf16 does not fit on one h100" in found.text and "int4" in found.text
    (none,) = advice("fits", llama, ("bf16",), ("l4",), (64,))
    assert (
        none.verdict == "does not fit" and none.figures["devices"] == 10 and "10 of them hold it in bf16" in none.text
    )
    assert advice("fits", llama, ("int4",), ("h100",), (1,)) == []


def test_a_format_that_has_no_engine_here_is_no_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache(tmp_path / "cache", monkeypatch)
    keep(record())
    whole, gib = mixture(), this_machine("cpu").memory
    layers = int(8 * gib * 2**30 / sum(stored_bytes(whole.tensors, FORMATS["fp32"]).values()))  # twice what it has
    (found,) = advice("fits", mixture(layers=layers), ("bf16",), ("cpu",), (1,), 64)
    assert "int4" in found.text and not any(name in found.text for name in ("fp8", "nvfp4", "mxfp4"))


def test_the_state_outgrows_the_weights(tmp_path: Path) -> None:
    llama = shape(tmp_path, configs.LLAMA_70B)
    (found,) = advice("state", llama, ("int4",), (), (1, 32, 64), 4096)
    assert found.figures["state_bytes"] > found.figures["weights_bytes"] and "the state of 32 texts" in found.text
    assert advice("state", llama, ("int4",), (), (16,), 4096) == []
