"""The TensorRT backends: probe, refusals, export, build in a process of its own, load."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moec import registry
from moec.backends.tensorrt.building.request import refused_settings, request_of
from moec.backends.tensorrt.edition import RTX, TENSORRT, Edition
from moec.backends.tensorrt.engine_tables import tables
from moec.backends.tensorrt.fixed_signature import buffers, grown
from moec.backends.tensorrt.gpu import find_gpu
from moec.backends.tensorrt.options import DEVICES, OPTIONS, PREFIX, RTX_DEVICES
from moec.backends.tensorrt.policy import MEMORY_BYTES, BuildPlan
from moec.backends.tensorrt.profiles import Profile, capacity, ends, limits_of, profiles
from moec.backends.tensorrt.session.engine import FACTS_FILE, PLAN_FILE, TensorrtEngine, read_described
from moec.execution.engine import Engine
from moec.pipeline.pipeline import Pipeline
from moec.program.conditions import Assumptions
from moec.program.program import Input, Program, dynamic_dimensions
from moec.progress import Progress
from moec.registry import did_you_mean
from moec.targets.backend import Backend, Constant, Probe, Refusal
from moec.targets.target import Target
from moec.targets.target_options import refused_options

MODEL_FILE = "model.onnx"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
STAND_IN = Target("onnxruntime")
_NO_BF16 = (
    "an engine in bfloat16 could not be proven: ONNX Runtime's CPU multiplies nothing in it, and its rounding "
    "alone changes which experts tokens choose"
)
_LATER = "`moec compile --no-build` writes here what `moec build` finishes there"


class Tensorrt(Backend):
    """TensorRT 10.16 or newer, built on the GPU that an engine is for.

    `tensorrt:sm90` names that GPU's architecture, `tensorrt` alone means the GPU that is here. docs/tensorrt.md says
    how mixtures run and what is refused.
    """

    name = "tensorrt"
    constants_file = "model.onnx, which the plan is built from"
    edition: Edition = TENSORRT
    declared, devices = OPTIONS, DEVICES
    _lowered: tuple[Program, Any] | None = None  # what was written last, so that its proof need not lower it again

    def probe(self, target: Target) -> Probe:
        edition, version, gpu = self.edition, self.edition.version(), find_gpu()
        # these write the graph, and prove it where nothing else can
        versions = dict(stand_in().probe(STAND_IN).versions)
        later = _LATER if edition.builds_on_gpu else ""
        if version is None:
            missing = f"{edition.title} is not installed"
            return Probe(False, versions, missing=missing, install=edition.install, later=later)
        versions[edition.backend] = version
        if not edition.knows(version):
            oldest = ".".join(map(str, edition.oldest))
            missing = f"{edition.title} is {version}, moec needs {oldest} or newer"
            return Probe(False, versions, missing=missing, install=f"{edition.install} --upgrade", later=later)
        if edition.builds_on_gpu and gpu is None:
            missing, install = "there is no NVIDIA GPU here", "run on the GPU's machine"
            return Probe(False, versions, missing=missing, install=install, later=later, code="M302")
        wanted = architectures(target)
        if edition.builds_on_gpu and gpu and wanted and gpu.sm not in wanted:
            missing = f"the GPU here is sm{gpu.sm}, and plans are built on the GPU that they are for"
            install = "run on that GPU's machine"
            return Probe(False, versions, missing=missing, install=install, later=later, code="M302")
        return Probe(True, versions, devices=(f"sm{gpu.sm} {gpu.name}",) if gpu else ("builds without a GPU",))

    def options(self, target: Target) -> list[Refusal]:
        edition, refusals = self.edition, []
        for device in target.device.split(",") if target.device else []:
            if device not in self.devices:
                what = f"{edition.title} builds no engine for {device!r}"
                fix = f"architectures are {', '.join(self.devices)}"  # a number that looks alike is no nearer
                refusals.append(Refusal(what, str(target), fix))
        if edition.builds_on_gpu and "," in target.device:
            refusals.append(Refusal("a plan is for one architecture", str(target), "compile once for each"))
        if target.options.get("precision") == "bf16":
            return [*refusals, Refusal(_NO_BF16, str(target), "take precision=fp16, or fp32")]
        return refusals + refused_options(target, OPTIONS) + refused_settings(target, edition, find_gpu())

    def supports(self, program: Program, target: Target) -> list[Refusal]:
        names = dynamic_dimensions(program.inputs)
        unknown = [name for name in limits_of(target.options) if name not in names]
        fix = f"its dynamic dimensions are {', '.join(names) or 'none'}"
        if unknown:
            what = "the model has no dynamic dimension"
            return [
                Refusal(f"{what} {name!r}", f"{PREFIX}{name}", did_you_mean(name, list(names), fix)) for name in unknown
            ]
        from moec.backends.tensorrt.graph.refusals import refusals

        return refusals(program, self.plan(target, self._profiles(program, target)))

    def precision(self, target: Target) -> torch.dtype:
        return PRECISIONS[target.options.get("precision", "fp32")]

    def legalize(self, target: Target) -> Pipeline:
        return Pipeline.parse("find-moe, fuse-moe").all_optional()

    def layouts(self, target: Target) -> tuple[str, ...]:
        return (
            "plain",
        )  # onnxruntime-genai reads no plans, and Triton would have to be told which profile each request is for

    def build(
        self,
        program: Program,
        target: Target,
        folder: Path,
        optimize_for: str = "latency",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        facts = self.export(program, target, folder, optimize_for, progress)
        return {**facts, **self.finish(folder, target, optimize_for, progress)}

    def export(
        self,
        program: Program,
        target: Target,
        folder: Path,
        optimize_for: str = "latency",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        from moec.backends.tensorrt.graph.export import write_onnx

        found = self._profiles(program, target, optimize_for)
        plan = self.plan(target, found)
        model, facts = write_onnx(program, folder / MODEL_FILE, self.precision(target), plan, progress)
        self._lowered = program, model
        places = next((row["capacity"] for row in facts.get("cache", ())), 0)
        found = self._profiles(program, target, optimize_for, places)
        described: dict[str, Any] = {
            "plan": asdict(plan),
            "inputs": [_plain(i) for i in program.inputs],
            "capacity": places,
            "outputs": list(program.outputs),
            "profiles": [p.to_dict() for p in found],
            "assumptions": program.assumptions.to_plain(),
        }
        described["native"] = [block.pop("native") for block in facts["blocks"] if "native" in block]
        described["kernels"] = self._compile(
            [block.pop("kernels") for block in facts["blocks"] if "kernels" in block], folder, facts
        )
        (folder / FACTS_FILE).write_text(json.dumps(described, indent=1) + "\n")
        return {**facts, "profiles": [p.row() for p in found]}

    def constants(self, folder: Path) -> Iterable[Constant] | None:
        return stand_in().constants(folder)  # of model.onnx: a plan is opaque, and is built from this file

    def lowered_constants(
        self, program: Program, target: Target, folder: Path, optimize_for: str = "latency"
    ) -> Iterable[Constant] | None:
        from moec.backends.tensorrt.graph.constants import lowered_constants

        return lowered_constants(program, folder / FACTS_FILE, self._lowered)

    def stages(self, program: Program, target: Target, optimize_for: str = "latency") -> Iterator[tuple[str, Engine]]:
        from moec.backends.tensorrt.graph.export import stages

        return stages(program, self.plan(target, self._profiles(program, target, optimize_for)))

    def _profiles(
        self, program: Program, target: Target, optimize_for: str = "latency", capacity: int = 0
    ) -> list[Profile]:
        inputs = buffers(program.inputs, capacity) if capacity else program.inputs
        return profiles(inputs, limits_of(target.options), optimize_for, program.conditions)

    def _compile(self, blocks: list[dict[str, Any]], folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Kernels of moec's own are compiled where the graph is written: the machine that builds needs no Triton."""
        if not blocks:
            return []
        from moec.backends.tensorrt.plugins.chain import compile_chains

        found, facts["kernels"] = compile_chains(blocks, folder)
        return found

    def plan(self, target: Target, found: list[Profile]) -> BuildPlan:
        """What the graph depends on: the GPU that is named or here, and the most tokens that the profiles allow."""
        from moec.backends.tensorrt.graph.fixed_cache import can_be_fixed

        gpu = find_gpu()
        wanted = architectures(target) or ([gpu.sm] if gpu and self.edition.builds_on_gpu else [])
        tokens, length = max((p.tokens for p in found), default=1), max((p.length for p in found), default=1)
        memory_bytes = int(target.options.get("workspace", MEMORY_BYTES >> 20)) << 20
        version, lowering = self.edition.version() or "", target.options.get("lowering", "auto")
        step = min((p.tuned for p in found), default=1)
        fixed = target.options.get("cache", "fixed") == "fixed" and can_be_fixed(self.edition.backend, version)
        places = capacity(limits_of(target.options)) if fixed else 0
        return BuildPlan(
            self.edition.backend, version, tuple(wanted), tokens, length, step, memory_bytes, lowering, places
        )

    def finish(
        self, folder: Path, target: Target, optimize_for: str = "latency", progress: Progress | None = None
    ) -> dict[str, Any]:
        from moec.backends.tensorrt.building.worker import call
        from moec.backends.tensorrt.plugins.network import demand_gpu_of

        described = json.loads((folder / FACTS_FILE).read_text())
        beside = folder / f".{PLAN_FILE}"
        request = request_of(self.edition, folder / MODEL_FILE, beside, target, described, find_gpu())
        demand_gpu_of(request["kernels"], find_gpu())
        built = call(request)
        beside.replace(folder / PLAN_FILE)
        described |= {"edition": self.edition.backend, "version": built["version"], "architectures": self._for(target)}
        described["settings"] = request["settings"]
        write_beside(folder / FACTS_FILE, json.dumps(described, indent=1) + "\n")
        facts = tables(self.edition, built, described, (folder / PLAN_FILE).stat().st_size, target)
        return facts if self.stand_in(target) else {**facts, "unproven": []}

    def _for(self, target: Target) -> list[int]:
        """The architectures that the plan runs on; all that the library knows when empty."""
        gpu = find_gpu()
        return [gpu.sm] if self.edition.builds_on_gpu and gpu else architectures(target)

    def shown(self, folder: Path, target: Target) -> Target:
        from moec.backends.onnx.shown import shown

        return shown(folder / MODEL_FILE, target)

    def outputs(self, folder: Path) -> tuple[Input, ...]:
        capacity = json.loads((folder / FACTS_FILE).read_text()).get("capacity", 0)
        return grown(stand_in().outputs(folder), capacity)

    def stand_in(self, target: Target, built: bool = True) -> Target | None:
        here = built and self.probe(target).available and find_gpu() is not None and torch.cuda.is_available()
        return None if here else STAND_IN

    def load(self, folder: Path, target: Target, prepack: bool = True) -> Engine:
        if target.backend == STAND_IN.backend:
            from moec.backends.tensorrt.session.cpu_stand_in import runnable

            engine = runnable(folder, lambda path: stand_in().load(path, target, prepack))
            engine.assume(Assumptions(ends([Profile.of(data) for data in read_described(folder)["profiles"]])))
            return engine
        return TensorrtEngine(folder, target, self.edition)


class TensorrtRtx(Tensorrt):
    """TensorRT-RTX 1.7 or newer, built without a GPU.

    `tensorrt-rtx:sm89,sm120` names the architectures that the engine runs on, `tensorrt-rtx` alone all that there are.
    docs/tensorrt.md says how mixtures run and what is refused.
    """

    name = "tensorrt-rtx"
    edition = RTX
    devices = RTX_DEVICES


def stand_in() -> Backend:
    """What runs `model.onnx` where the library or its GPU is missing."""
    found: Backend = registry.find("backends", STAND_IN.backend)()
    return found


def architectures(target: Target) -> list[int]:
    """The architectures that a target names, e.g. `[86, 120]`."""
    return [
        int(device.removeprefix("sm")) for device in target.device.split(",") if device.removeprefix("sm").isdigit()
    ]


def write_beside(path: Path, text: str) -> None:
    """Replace a file as a whole: it may be linked from the engine that this one replaces."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)


def _plain(spec: Input) -> list[Any]:
    return [spec.name, str(spec.dtype).removeprefix("torch."), list(spec.shape)]
