"""Build a plan from an ONNX file with either library. Runs in a process of its own, see `worker`; imports neither torch
nor onnx.

Every call of the library says that it failed by None, False or -1, not by an exception, so every one is checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moec.errors import MoecError

_KEPT = 20  # messages of the library that are reported at most


def build_plan(trt: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Write a plan.

    Args:
        trt: the library.
        request: `onnx` and `plan`, paths; `profiles`, as `Profile.to_dict` gives them; `architectures` for
            TensorRT-RTX, else empty; `native`, blocks that get the library's own MoE layer; `kernels`, blocks that get
            moec's own, whose PTX is beside the ONNX file; `workspace_bytes`, 0 for the library's own limit;
            `timing_cache`, a path, or empty for none; `settings`, see `request.settings`.

    Returns:
        Facts: `version`, `layers` (kind -> count), `constants` (kind -> bytes), `workspace_bytes`, `messages`.

    Raises:
        MoecError: M208 when the parser or the builder refuses the graph.
    """
    logger = _logger(trt)
    builder = _made(trt.Builder(logger), "a builder", logger)
    network = _made(
        builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), "a network", logger
    )
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(request["onnx"])):
        raise _refused(parser, str(request["onnx"]))
    outliving = _replace_blocks(trt, network, request)
    config = _made(builder.create_builder_config(), "a configuration", logger)
    configure(trt, config, request, logger)
    for profile in request["profiles"]:
        _add_profile(builder, config, profile)
    plan = builder.build_serialized_network(network, config)
    del outliving
    if plan is None:
        raise MoecError(
            "M208", f"{trt.__name__} cannot build the graph: {logger.reason()}", str(request["onnx"]), _BUILD_FIX
        )
    Path(request["plan"]).write_bytes(plan)
    _keep_timings(config, request)
    return {
        "version": str(trt.__version__), "layers": layers(network), "messages": logger.warnings()[:_KEPT],
        "constants": constants(trt, network),
        "workspace_bytes": int(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)),
    }  # fmt: skip


def _replace_blocks(trt: Any, network: Any, request: Mapping[str, Any]) -> list[Any]:
    """Put what is no standard operator into the network; returns what must outlive the build."""
    from moec.backends.tensorrt.plugins import native_layer as native
    from moec.backends.tensorrt.plugins import network as plugins

    layers = native.splice(trt, network, request["native"]) if request["native"] else []
    return layers + (
        plugins.splice(trt, network, request["kernels"], Path(request["onnx"]).parent) if request["kernels"] else []
    )


_BUILD_FIX = "use another precision or smaller max_… options; report it with `moec compile --dump DIR` if nothing helps"


def inspect_plan(trt: Any, plan: Path) -> dict[str, Any]:
    """What only a GPU can say of a plan: that it loads, its `kernels` (layers after fusion) and what the inspector says
    of each (`plan_layers`), and `memory_bytes` of each profile's intermediates.

    Raises:
        MoecError: M303 when the plan that was just built cannot be loaded.
    """
    logger = _logger(trt)
    runtime = _made(trt.Runtime(logger), "a runtime", logger)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise MoecError(
            "M303",
            f"the plan that was built cannot be loaded: {logger.reason()}",
            str(plan),
            "check the driver with nvidia-smi",
        )
    memory = [
        int(engine.get_device_memory_size_for_profile_v2(index)) for index in range(engine.num_optimization_profiles)
    ]
    return {"kernels": int(engine.num_layers), "memory_bytes": memory, "plan_layers": plan_layers(trt, engine)}


def plan_layers(trt: Any, engine: Any) -> list[dict[str, str]]:
    """A row a layer of a plan: its name, and with `verbosity=detailed` its kind, kernel and precisions."""
    inspector, rows = engine.create_engine_inspector(), []
    for index in range(engine.num_layers):
        said = json.loads(inspector.get_layer_information(index, trt.LayerInformationFormat.JSON))
        known = said if isinstance(said, dict) else {"Name": said}
        rows.append({want.lower(): str(known.get(want, ""))[:200] for want in ("Name", "LayerType", "TacticName")})
    return rows


def configure(trt: Any, config: Any, request: Mapping[str, Any], logger: Any) -> None:
    """Everything but the profiles. TF32 is off: float32 means float32, as in the untouched model that the engine is
    compared with."""
    config.clear_flag(trt.BuilderFlag.TF32)
    if request["workspace_bytes"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    _apply_settings(trt, config, request.get("settings", {}))
    architectures = request["architectures"]
    if architectures:
        config.num_compute_capabilities = len(architectures)
        for index, sm in enumerate(architectures):
            known = getattr(trt.ComputeCapability, f"SM{sm}", None)
            if known is None or not config.set_compute_capability(known, index):
                raise MoecError(
                    "M208",
                    f"{trt.__name__} does not build for sm{sm}: {logger.reason()}",
                    f"sm{sm}",
                    "name another architecture",
                )
    if request["timing_cache"]:
        stored = Path(request["timing_cache"])
        cache = config.create_timing_cache(stored.read_bytes() if stored.exists() else b"")
        if cache is None or not config.set_timing_cache(
            cache, ignore_mismatch=False
        ):  # of another driver or GPU: timed anew
            config.set_timing_cache(
                _made(config.create_timing_cache(b""), "a timing cache", logger), ignore_mismatch=False
            )


def _apply_settings(trt: Any, config: Any, chosen: Mapping[str, str]) -> None:
    flags = {"refit": trt.BuilderFlag.REFIT, "weight_streaming": trt.BuilderFlag.WEIGHT_STREAMING}
    for name, flag in flags.items():
        if chosen.get(name) == "yes":
            config.set_flag(flag)
    if chosen.get("timing_cache") == "none":
        config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)
    kept = trt.ProfilingVerbosity
    words = {"layers": kept.LAYER_NAMES_ONLY, "detailed": kept.DETAILED, "none": kept.NONE}
    config.profiling_verbosity = words[chosen.get("verbosity", "layers")]


def _keep_timings(config: Any, request: Mapping[str, Any]) -> None:
    """Store what was timed for the next build. Beside, then renamed: several builds may end at once."""
    cache = config.get_timing_cache() if request["timing_cache"] else None
    if cache is None:
        return
    path = Path(request["timing_cache"])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{Path(request['plan']).parent.name}")
    beside.write_bytes(cache.serialize())
    beside.replace(path)


def _add_profile(builder: Any, config: Any, wanted: Mapping[str, Any]) -> None:
    profile = builder.create_optimization_profile()
    for name, (low, best, high) in wanted["shapes"].items():
        profile.set_shape(name, tuple(low), tuple(best), tuple(high))
    if config.add_optimization_profile(profile) < 0:
        raise MoecError(
            "M208",
            f"the profile {wanted['name']!r} is not accepted",
            f"{wanted['sizes']}",
            "choose other max_… options of the target",
        )


def layers(network: Any) -> dict[str, int]:
    """How many layers of each kind a network has."""
    kinds = Counter(str(network.get_layer(index).type).rpartition(".")[2] for index in range(network.num_layers))
    return dict(sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])))


def constants(trt: Any, network: Any) -> dict[str, int]:
    """Bytes of the constants that layers of each kind hold."""
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        constant = network.get_layer(index)
        if constant.type == trt.LayerType.CONSTANT:
            constant.__class__ = trt.IConstantLayer  # a layer is given as one of no kind
            found["CONSTANT"] += int(constant.weights.nbytes)
    return dict(found)


def _refused(parser: Any, path: str) -> MoecError:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    error = found[0] if found else None
    reason = error.desc().strip().splitlines()[0][:300] if error and error.desc().strip() else "no reason given"
    where = f"{error.node_operator()} {error.node_name()}".strip() if error else ""
    return MoecError(
        "M208",
        f"the ONNX parser refuses the graph: {reason}",
        where or path,
        "report the operator; `moec compile --dump DIR` shows the graph",
    )


def _made(thing: Any, what: str, logger: Any) -> Any:
    if thing is None:
        raise MoecError(
            "M302", f"the library cannot make {what}: {logger.reason()}", "builder", "check the driver with nvidia-smi"
        )
    return thing


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # the library's class is known only here
        """Collects what the library says."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                self.said.append((int(severity), " ".join(message.split())[:400]))

        def reason(self) -> str:
            """The last error, or that there is none."""
            errors = [m for s, m in self.said if s < int(trt.ILogger.Severity.WARNING)]
            return errors[-1] if errors else "the library gives no reason"

        def warnings(self) -> list[str]:
            """What was said, each once."""
            return list(dict.fromkeys(m for _, m in self.said))

    return Logger()
