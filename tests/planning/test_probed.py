"""A record of a machine: written, read, and refused where it says nothing about this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from moec.errors import MoecError
from moec.execution.machine import machine
from moec.files import kept
from moec.planning.probed import FILE, between, find_record, grown, keep, shares
from tests.planning.records import own_cache, record


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_cache(tmp_path / "cache", monkeypatch)
    return tmp_path / "cache"


def test_what_is_kept_is_found_and_a_later_one_takes_its_place(cache: Path) -> None:
    assert keep(record()) == cache / FILE and find_record() == record()
    keep(msgspec.structs.replace(record(), low=0.5))
    assert find_record().low == 0.5 and [p.name for p in cache.iterdir()] == [FILE]
    assert kept.prune(0) == [] and find_record().bandwidth == 2e10  # pruning weights leaves it


def refused() -> str:
    with pytest.raises(MoecError, match="M201") as error:
        find_record()
    assert error.value.exit_code == 2 and "moec probe" in error.value.fix
    return error.value.what


def test_without_one_the_way_out_is_to_measure() -> None:
    assert "not been measured" in refused()


def test_one_of_another_machine_version_or_format_is_not_used() -> None:
    here = machine()
    keep(msgspec.structs.replace(record(), machine=replace(here, cores=here.cores + 1)))
    assert "another machine" in refused()
    for package, name in (("onnxruntime", "ONNX Runtime"), ("moec", "moec")):
        keep(msgspec.structs.replace(record(), versions={**record().versions, package: "0.0.1"}))
        assert f"{name} 0.0.1" in refused()
    keep(msgspec.structs.replace(record(), format=0))
    assert "another version of moec" in refused()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"made": 3}', b"\xff" * 40, b" " * 2**21])
def test_one_that_is_none_cannot_be_read(cache: Path, content: bytes) -> None:
    (cache / FILE).write_bytes(content)
    assert "cannot be read" in refused()


def test_nothing_is_kept_where_the_cache_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.FOLDER, "off")
    assert keep(record()) is None and "cache is off" in refused()


def test_values_between_places_lie_on_straight_lines() -> None:
    places, values = (1, 4, 16), (10.0, 40.0, 100.0)
    assert [between(places, values, p) for p in (0, 1, 2, 4, 10, 16, 32)] == [10, 10, 20, 40, 70, 100, 100]
    assert grown(places, values, 32) == 200 and grown(places, values, 4) == 40
    assert shares((5,), 3) == [1.0] and shares(places, 10) == [0.0, 0.5, 0.5]
