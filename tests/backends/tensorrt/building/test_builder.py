"""Plans are built from ONNX without a GPU by TensorRT-RTX, and every refusal of the library is an error of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec.backends.tensorrt.building.builder import build_plan, configure
from moec.backends.tensorrt.edition import RTX
from moec.errors import MoecError
from tests.backends.tensorrt.tiny import needs_rtx, request, write

pytestmark = needs_rtx
REQUEST: dict[str, Any] = {"workspace_bytes": 0, "architectures": [], "timing_cache": ""}


def build(folder: Path, **changes: Any) -> dict[str, Any]:
    return build_plan(RTX.load(), request(folder, **changes))


def test_a_plan_and_what_is_in_it(tmp_path: Path) -> None:
    facts = build(tmp_path, architectures=[86, 120], workspace_bytes=1 << 26)
    assert (tmp_path / "model.plan").stat().st_size > 1000
    assert facts["layers"]["MATRIX_MULTIPLY"] == 1 and facts["workspace_bytes"] == 1 << 26
    assert facts["version"] == RTX.load().__version__


def test_it_builds_with_settings_and_counts_constants(tmp_path: Path) -> None:
    facts = build(tmp_path, settings={"verbosity": "detailed", "weight_streaming": "yes", "timing_cache": "none"})
    assert facts["constants"] == {"CONSTANT": 8 * 8 * 4} and (tmp_path / "model.plan").stat().st_size > 1000


def test_settings_are_flags_of_the_builder() -> None:
    trt, found = RTX.load(), []
    config = trt.Builder(trt.Logger()).create_builder_config()
    for word in ("no", "yes"):
        chosen = {"refit": word, "weight_streaming": word, "verbosity": {"no": "layers", "yes": "detailed"}[word]}
        configure(trt, config, {**REQUEST, "settings": chosen}, None)
        flags = [config.get_flag(getattr(trt.BuilderFlag, name)) for name in ("REFIT", "WEIGHT_STREAMING", "TF32")]
        found.append((flags, config.profiling_verbosity))
    kept = trt.ProfilingVerbosity
    assert found == [([False] * 3, kept.LAYER_NAMES_ONLY), ([True, True, False], kept.DETAILED)]


def test_equal_requests_make_equal_plans(tmp_path: Path) -> None:
    plans = []
    for _ in range(2):
        build(tmp_path)
        plans.append((tmp_path / "model.plan").read_bytes())
    assert plans[0] == plans[1]


def test_timings_are_stored_and_spoiled_ones_replaced(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "timings"
    build(tmp_path, timing_cache=str(cache))
    stored = cache.read_bytes()
    assert stored
    cache.write_bytes(b"spoiled")
    build(tmp_path, timing_cache=str(cache))
    assert cache.read_bytes() != b"spoiled"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"profiles": []}, "no optimization profile"),
        (
            {"profiles": [{"name": "upside down", "sizes": {}, "shapes": {"x": [[9, 8], [4, 8], [16, 8]]}}]},
            "profile 'upside down'",
        ),
        ({"profiles": [{"name": "other", "sizes": {}, "shapes": {"x": [[1, 9], [4, 9], [16, 9]]}}]}, "cannot build"),
        ({"architectures": [90]}, "does not build for sm90"),
    ],
    ids=["no profile", "minimum above maximum", "not the graph's shape", "an architecture it lacks"],
)
def test_what_the_library_refuses(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MoecError, match=reason) as caught:
        build(tmp_path, **changes)
    assert caught.value.code == "M208" and not (tmp_path / "model.plan").exists()


def test_the_parser_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="parser") as caught:
        build(tmp_path, onnx=write(tmp_path / "model.onnx", "NoSuchOperator"))
    assert caught.value.code == "M208" and "NoSuchOperator last" in caught.value.where
