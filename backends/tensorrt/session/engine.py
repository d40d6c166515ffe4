"""A plan as an engine on the GPU: torch tensors in by name, outputs allocated, nothing copied that is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moec.backends.tensorrt.edition import Edition
from moec.backends.tensorrt.fixed_signature import buffers
from moec.backends.tensorrt.gpu import find_gpu
from moec.backends.tensorrt.profiles import Profile, ends
from moec.backends.tensorrt.session.fixed_text import FixedText
from moec.backends.tensorrt.session.plan_context import Plan, PlanContext
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import Continuation, last_logits
from moec.program.conditions import Assumptions
from moec.program.decoder_signature import IDS, MASK, beginning, cache_inputs, present_name
from moec.program.program import Input
from moec.targets.target import Target

PLAN_FILE, FACTS_FILE = "model.plan", "model.plan.json"
_AGAIN = "build it for this machine with `moec build ENGINE`"


class TensorrtEngine(Engine):
    """Runs `model.plan` of an engine folder.

    Args:
        folder: where the plan lies, with `model.plan.json` beside it.
        target: what it was built for.
        edition: the library that built it.

    Raises:
        MoecError: M106 where the plan is missing or cannot be read, M301 where another version of the library built it,
            M302 where its GPU is not here. These are found in this order, so that what needs no GPU is said without
            one.
    """

    def __init__(self, folder: Path, target: Target, edition: Edition) -> None:
        self._plan, self.name = folder / PLAN_FILE, str(target)
        facts = read_facts(folder)
        self.inputs = tuple(Input(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in facts["inputs"])
        self.outputs = tuple(facts["outputs"])
        self._profiles = [Profile.of(data) for data in facts["profiles"]]
        self._capacity = int(facts.get("capacity", 0))
        self.assume(Assumptions.of_plain(facts["assumptions"]))
        self.assume(Assumptions(ends(self._profiles)))
        require_version(facts, edition, self._plan)
        require_gpu(facts, target)
        self._trt = edition.load()
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(self._plan.read_bytes())
        if engine is None:
            raise MoecError("M106", f"{edition.title} cannot read the plan", str(self._plan), _AGAIN)
        if facts.get("settings", {}).get("weight_streaming") == "yes":  # as much as fits stays on the GPU
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        context = engine.create_execution_context()
        if context is None:
            raise MoecError(
                "M302",
                "the GPU has no memory left for the engine",
                str(self._plan),
                "free memory, or compile with smaller max_… options",
            )
        specs = buffers(self.inputs, self._capacity) if self._capacity else self.inputs
        plan = Plan(self.name, engine, self._trt, specs, self.outputs, tuple(self._profiles), torch.cuda.Stream())  # type: ignore[no-untyped-call]
        self._main = PlanContext(plan, context)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs are where the inputs are: on the host when all of them are there."""
        outputs = self.run_on_gpu(inputs)
        host = all(value.device.type == "cpu" for value in inputs.values())
        return {name: value.cpu() if host else value for name, value in outputs.items()}

    def run_on_gpu(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; the outputs stay on the GPU. Raises M211 for shapes outside of the profiles."""
        if self._capacity:
            text = FixedText(self._main, self.inputs, self._capacity, self.name, once=True)
            text.fill({c.name: inputs[c.name] for c in cache_inputs(self.inputs)})
            outputs = text.advance(inputs[IDS], inputs[MASK])
            return {name: {**outputs, **text.present(inputs[MASK].shape[1])}[name] for name in self.outputs}
        self._main.bind(None, {name: value.to("cuda").contiguous() for name, value in inputs.items()}, {})
        return self._main.execute()

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether its conditions and a profile hold these sizes; a dimension that is not named may be of any."""
        return super().holds(sizes) and (not self._profiles or any(p.holds(sizes) for p in self._profiles))

    def continuation(self) -> Continuation:
        """A new text, see `moec.execution.generation`: its cache stays on the GPU."""
        if not self._capacity:
            return GpuContinuation(self)
        return FixedText(self._main, self.inputs, self._capacity, self.name)

    def close(self) -> None:
        self._main.close()
        self._runtime = None


class GpuContinuation:
    """A text whose cache stays on the GPU. `step` is that of `moec.execution.generation.Continuation`."""

    def __init__(self, engine: TensorrtEngine) -> None:
        self._owner, self._past = engine, dict[str, Tensor]()

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        caches = cache_inputs(self._owner.inputs)
        sizes = beginning(ids.shape[0])
        past = self._past or {c.name: torch.zeros(c.resolve(sizes), dtype=c.dtype, device="cuda") for c in caches}
        outputs = self._owner.run_on_gpu({IDS: torch.from_numpy(ids), MASK: torch.from_numpy(mask), **past})
        self._past = {c.name: outputs[present_name(c.name)] for c in caches}
        return last_logits(outputs)


def read_facts(folder: Path) -> dict[str, Any]:
    """What stands beside a plan. Raises M106 where it was never built, or what stands there is none of ours."""
    if (folder / FACTS_FILE).exists() and not (folder / PLAN_FILE).exists():
        raise MoecError(
            "M106",
            "the engine is not built yet",
            str(folder),
            "finish it with `moec build ENGINE` on the machine that has the GPU",
        )
    return read_described(folder, "version")


def read_described(folder: Path, *needed: str) -> dict[str, Any]:
    """What a plan is or will be built for, as the export wrote it down. Raises M106 where it cannot be read."""
    path = folder / FACTS_FILE
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        [facts[name] for name in (*needed, "profiles")], Assumptions.of_plain(facts["assumptions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MoecError(
            "M106", f"{FACTS_FILE} cannot be read: {type(error).__name__}", str(path), "compile the engine again"
        ) from error
    return facts


def require_version(facts: Mapping[str, Any], edition: Edition, plan: Path) -> None:
    """Raise M301 unless the library is the one that built the plan: plans of other versions are not read."""
    here = edition.version()
    if facts["edition"] != edition.backend or here != facts["version"]:
        built, found = f"{facts['edition']} {facts['version']}", f"{edition.backend} {here}"
        raise MoecError(
            "M301",
            f"the plan was built by {built}, and here is {found}",
            str(plan),
            f"install that version, or {_AGAIN}",
        )


def require_gpu(facts: Mapping[str, Any], target: Target) -> None:
    """Raise M302 unless a GPU that the plan was built for is here, for the driver and for torch."""
    gpu, wanted = find_gpu(), facts["architectures"]
    if gpu is None:
        raise MoecError(
            "M302",
            "there is no NVIDIA GPU here",
            str(target),
            "run on a machine with one; `moec verify` works here, on what stands in for it",
        )
    if wanted and gpu.sm not in wanted:
        built = ", ".join(f"sm{sm}" for sm in wanted)
        raise MoecError(
            "M302",
            f"the engine is for {built}, and the GPU here is sm{gpu.sm}",
            str(target),
            "compile for it, or run elsewhere",
        )
    if not torch.cuda.is_available():
        raise MoecError(
            "M302",
            "torch cannot use the GPU that is here",
            str(target),
            "install torch with CUDA, see https://pytorch.org",
        )
