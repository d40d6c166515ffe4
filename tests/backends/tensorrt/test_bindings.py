"""Every call that we make of TensorRT's bindings is one that they take: of 11.4 and 10.16 from a list, of TensorRT-RTX
from the library itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from moec.backends.tensorrt.edition import RTX
from moec.backends.tensorrt.session.plan_context import DTYPES
from tests.backends.tensorrt.bindings import Use, installed, problem, uses
from tests.backends.tensorrt.stubs import ask, needs_bindings, write_libraries
from tests.backends.tensorrt.tiny import needs_rtx

ROOT = Path(__file__).parents[3]
LIST = json.loads((ROOT / "tests/data/tensorrt_api.json").read_text())
SOURCES = [
    path for path in sorted((ROOT / "backends/tensorrt").rglob("*.py")) if re.search(r"\b_?trt\b", path.read_text())
]
ON_GPU_ONLY = {
    "execute_async_v3",
    "set_tensor_address",
    "set_input_shape",
    "infer_shapes",
    "deserialize_cuda_engine",
    "set_optimization_profile_async",
    "set_device_memory",
}


def every_use() -> list[Use]:
    return [use for path in SOURCES for use in uses(path.read_text())]


def known(edition: str = "tensorrt") -> dict[str, Any]:
    more = LIST["tensorrt-rtx adds"] if edition == "tensorrt-rtx" else {}
    return {owner: {**LIST["11.4"].get(owner, {}), **more.get(owner, {})} for owner in {*LIST["11.4"], *more}}


def only_rtx(use: Use) -> bool:
    return use.name in {name for members in LIST["tensorrt-rtx adds"].values() for name in members}


def without_rtx(use: Use) -> bool:
    """A use of what TensorRT-RTX has not: plugins."""
    return not {use.owner, use.name, f"{use.owner}.{use.name}"}.isdisjoint(LIST["tensorrt-rtx lacks"])


def test_the_walk_sees_what_we_call() -> None:
    assert {path.name for path in SOURCES} >= {
        "builder.py",
        "engine.py",
        "plan_context.py",
        "native_layer.py",
        "network.py",
    }
    assert {use.name for use in every_use() if without_rtx(use)} >= {
        "register",
        "aot_impl",
        "KernelLaunchParams",
        "SymInt32",
        "add_plugin",
    }
    assert {use.name for use in every_use()} >= ON_GPU_ONLY | {
        "build_serialized_network",
        "parse_from_file",
        "add_optimization_profile",
        "set_gated_weights",
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_11_4_takes_every_call(path: Path) -> None:
    assert {
        str(use): why for use in uses(path.read_text()) if not only_rtx(use) and (why := problem(use, known()))
    } == {}


def test_10_16_has_everything_that_we_use() -> None:
    assert [str(use) for use in every_use() if f"{use.owner}.{use.name}" in LIST["10.16 lacks"]] == []


def test_what_only_rtx_has_is_asked_of_nothing_else() -> None:
    lines = (ROOT / "backends/tensorrt/building/builder.py").read_text().splitlines()
    guard = next(n for n, line in enumerate(lines, 1) if line.strip() == "if architectures:")
    assert all(guard < use.line <= guard + 6 for use in every_use() if only_rtx(use))


def test_what_rtx_lacks_is_asked_in_one_file() -> None:
    found = {path.name for path in SOURCES if any(map(without_rtx, uses(path.read_text())))}
    assert found == {"network.py"}, "the policy never chooses plugins for TensorRT-RTX, see test_policy"


@needs_bindings
def test_the_list_says_what_the_bindings_of_plugins_say(tmp_path: Path) -> None:
    listed = LIST["11.4"]["plugin"]
    answer = ask(
        write_libraries(tmp_path),
        {"ask": "signatures", "names": [name for name, kind in listed.items() if isinstance(kind, list)]},
    )
    assert answer["plugin"] == {name: kind for name, kind in listed.items() if isinstance(kind, list)}
    overloads = re.findall(r"add_plugin\(self: \S+, (.*)\) -> ", answer["add_plugin"])
    assert [re.sub(r": [^,]+", "", text).replace(",", "") for text in overloads] == LIST["11.4"]["INetworkDefinition"][
        "add_plugin"
    ]


@needs_rtx
def test_rtx_takes_every_call() -> None:
    wanted = [use for use in every_use() if not without_rtx(use)]
    signatures = installed(RTX.load(), wanted)
    assert {str(use): why for use in wanted if (why := problem(use, signatures))} == {}


@needs_rtx
def test_the_list_says_what_the_library_says() -> None:
    """Where both have a method, the list's arguments are the library's: it was made from another release."""
    signatures, differs = installed(RTX.load(), every_use()), []
    for owner, members in known("tensorrt-rtx").items():
        for name, listed in members.items():
            if (
                isinstance(listed, list)
                and name in signatures.get(owner, {})
                and not set(listed) & set(signatures[owner][name])
            ):
                differs.append(f"{owner}.{name}: {listed}, {signatures[owner][name]}")
    assert differs == []


@needs_rtx
def test_dtypes_are_names_of_the_library() -> None:
    trt = RTX.load()
    assert all(isinstance(getattr(trt, name), trt.DataType) for name in DTYPES)


@pytest.mark.parametrize(
    "wrong",
    [
        "builder.build_engine(network, config)",
        "builder.build_serialized_network(network)",
        "builder.build_serialized_network(network, config, 1, 2)",
        "config.set_memory_pool_limit(pool=1, limit=2)",
        "config.clear_flag()",
        "config.set_timing_cache(cache)",
        "self._context.execute_async_v2(stream)",
        "self._context.infer_shapes = 1",
        "network.num_layers = 3",
        "network.add_plugin(f, ahead=True)",
        "plugin.register()",
        "plugin.KernelLaunchParams(grid=1)",
        "plugin.SymInt64(1)",
        "network.num_layers()",
        "trt.BuilderFlag.FP16",
        "trt.NoSuchClass(1)",
        "trt.Builder()",
        "engine.max_batch_size",
        "def f(network):\n    made = network.add_shuffle(x)\n    made.set_gated_weights(a, b, c, d)",
        "def f(network):\n    made = network.add_moe(x)",
        "def f(network):\n    made = network.add_moe(x, y, z)\n    made.reshape_dims = (1, 2)",
    ],
)
def test_a_wrong_call_is_seen(wrong: str) -> None:
    assert any(problem(use, known()) for use in uses(wrong))


def test_right_calls_are_let_pass() -> None:
    right = (
        "config.set_timing_cache(cache, "
        "ignore_mismatch=False)\nbuilder.create_network(flags=1)\nbuilder.create_network()\nnumber = "
        "network.num_layers"
    )
    assert [problem(use, known()) for use in uses(right)] == [""] * 4
