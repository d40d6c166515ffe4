"""What a setting takes, what it refuses, and that what it writes reads back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.compiler.setting import (
    Choice,
    Folder,
    Kind,
    Name,
    Names,
    PassList,
    Real,
    Size,
    Switch,
    TargetText,
    Whole,
    setting,
    settings_of,
)
from moec.errors import MoecError
from moec.passes.upcycle import Upcycle
from moec.pipeline.pipeline import Pipeline
from moec.targets.target import Target

UPCYCLE = Pipeline((Upcycle(2, 1),))
TAKEN: list[tuple[Kind, Any, Any]] = [
    (Whole(0), 0, 0),
    (Whole(0), 2**63 - 1, 2**63 - 1),
    (Whole(0), np.int64(3), 3),
    (Size(), "16GiB", 16 * 2**30),
    (Size(), "16g", 16 * 2**30),
    (Size(), "1.5 GB", 1_500_000_000),
    (Size(), "300 b", 300),
    (Size(), 4096, 4096),
    (Real(), 0, 0.0),
    (Real(), 0.25, 0.25),
    (Real(above=True), 1e-300, 1e-300),
    (Choice(("a", "b")), "b", "b"),
    (Switch(), False, False),
    (Name(), "x.txt", "x.txt"),
    (Name(), Path("x.txt"), "x.txt"),
    (Folder(), "x", Path("x")),
    (Names(), ["x=a:int64"], ("x=a:int64",)),
    (Names(), None, ()),
    (TargetText(), "tensorrt:sm90", Target("tensorrt", "sm90")),
    (TargetText(), Target("onnxruntime", options={"threads": 2}), Target("onnxruntime", "", {"threads": "2"})),  # type: ignore[dict-item]
    (PassList(), "upcycle(experts=2, top_k=1)", UPCYCLE),
    (PassList(), [{"name": "upcycle", "experts": 2, "top_k": 1}], UPCYCLE),
    (PassList(), ("upcycle(experts=2, top_k=1)", "find-moe"), UPCYCLE + Pipeline.parse("find-moe")),
    (PassList(), UPCYCLE, UPCYCLE),
]
REFUSED: list[tuple[Kind, list[Any]]] = [
    (Whole(2), [1, -1, 2**63, True, 2.0, "3"]),
    (Size(), ["", "many", "-1G", "0", "16 gigs", "Gi", True, 0, -5, 1.5, 2**63, "1e3", "9999999T"]),
    (Real(), [-1e-9, math.inf, -math.inf, math.nan, True, "1", 10**400]),
    (Real(above=True), [0, 0.0]),
    (Choice(("a", "b")), ["c", "", 1, None]),
    (Switch(), [1, 0, "true", None]),
    (Name(), ["", 3, None, b"x"]),
    (Folder(), ["", 3]),
    (Names(), ["x", [1], {"x": 1}]),
    (TargetText(), [3, None, ["onnxruntime"]]),
    (PassList(), [3, None, {"name": "upcycle"}]),
]


def declared(kind: Kind) -> Any:
    @dataclass
    class Holder:
        some_thing: Any = setting(kind, 0, "Help.")

    return settings_of(Holder)["some_thing"]


@pytest.mark.parametrize(
    ("kind", "value", "want"), TAKEN, ids=lambda v: type(v).__name__ if isinstance(v, Kind) else None
)
def test_values_are_read_and_what_is_written_reads_back(kind: Kind, value: Any, want: Any) -> None:
    read = declared(kind).read(value)
    assert read == want and type(read) is type(want)
    assert kind.read(json.loads(json.dumps(kind.write(read)))) == want and kind.read(read) == want


@pytest.mark.parametrize(("kind", "values"), REFUSED, ids=lambda v: type(v).__name__)
def test_everything_else_is_refused_by_name(kind: Kind, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(MoecError, match="some_thing cannot be") as caught:
            declared(kind).read(value)
        assert caught.value.code == "M201" and caught.value.where == "--some-thing"
        with pytest.raises(MoecError) as caught:
            declared(kind).read(value, "my.toml: x")
        assert caught.value.where == "my.toml: x"


def test_a_pipeline_that_no_manifest_could_say_is_refused() -> None:
    with pytest.raises(MoecError, match="reinit cannot be written down"):
        PassList().read(Pipeline((Upcycle(reinit=math.nan),)))


def test_a_choice_names_the_nearest() -> None:
    with pytest.raises(MoecError, match="no some_thing is called 'planes'") as caught:
        declared(Choice(("plain", "genai"), "M202")).read("planes")
    assert caught.value.code == "M202" and caught.value.fix == "did you mean plain?"


def test_only_a_setting_without_a_default_may_be_left_open() -> None:
    @dataclass
    class Holder:
        open: Any = setting(Whole(0), None, "Help.", shown=7)
        closed: Any = setting(Whole(0), 3, "Help.", flag="--shut", key="shut", recorded=False)

    found = settings_of(Holder)
    assert found["open"].read(None) is None and found["open"].shown == "7" and found["closed"].shown == "3"
    assert (found["open"].flag, found["open"].key, found["open"].recorded) == ("--open", "open", True)
    assert (found["closed"].flag, found["closed"].key, found["closed"].recorded) == ("--shut", "shut", False)
    with pytest.raises(MoecError, match="closed cannot be None"):
        found["closed"].read(None)
