"""The ONNX Runtime backend: probe, refusals, legalization, build and load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from moec.backends.onnxruntime.options import DEVICES, OPTIONS
from moec.execution.engine import TUNED, Engine
from moec.kernels.cpu.library import uses_own_kernels
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Input, Program
from moec.progress import Progress
from moec.registry import did_you_mean
from moec.targets.backend import Backend, Constant, Probe, Refusal
from moec.targets.target import Target
from moec.targets.target_options import refused_options

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
ROUNDED = 0.3  # max |d|/std that activations of 8 bits may cost: 0.05 to 0.17 in decoders of two to six layers
TF32 = 0.02  # the same for factors of 10 bits, as in half precision: 0.006 to 0.010 in decoders of two layers
PACKAGES = ("onnxruntime-gpu", "onnx", "onnx-ir", "onnxscript")


class Onnxruntime(Backend):
    """ONNX Runtime 1.31 or newer, on processors and on NVIDIA's GPUs.

    `onnxruntime`, or `onnxruntime:cpu`, is for processors, `onnxruntime:cuda` for GPUs; `onnxruntime:precision=fp16`
    says an option. With `tf32=true` an engine is compared as half precision is, whose mantissa is as long.
    """

    name = "onnxruntime"
    joins = True
    constants_file = "model.onnx"
    declared, devices = OPTIONS, DEVICES
    _lowered: tuple[Program, Any] | None = None  # what was built last, so that its proof need not lower it again

    def probe(self, target: Target) -> Probe:
        from moec.backends.onnxruntime.session.libraries import missing, phrases
        from moec.kernels.cpu.library import way_out, why_not

        try:
            import onnxruntime  # noqa: F401

            versions = {p: version(p) for p in PACKAGES}
        except (ImportError, PackageNotFoundError) as error:
            return Probe(False, missing=str(error), install="pip install onnxruntime-gpu onnx onnx-ir onnxscript")
        lacks = why_not()
        if lacks and uses_own_kernels(target.options):
            return Probe(False, versions, missing=lacks, install=way_out())
        return Probe(True, versions, devices=tuple(usable_providers()), lacking=(*phrases(missing()), *_unmade(lacks)))

    def options(self, target: Target) -> list[Refusal]:
        refusals = []
        if target.device not in ("", *DEVICES):
            fix = did_you_mean(target.device, DEVICES, "use onnxruntime or onnxruntime:cuda")
            refusals.append(Refusal(f"onnxruntime has no device {target.device!r}", str(target), fix))
        if target.options.get("tf32") == "true" and target.device != "cuda":
            refusals.append(Refusal("only CUDA has TF32", str(target), "use onnxruntime:cuda,tf32=true"))
        if target.options.get("graph") == "true" and target.device != "cuda":
            refusals.append(Refusal("only CUDA has graphs", str(target), "use onnxruntime:cuda,graph=true"))
        if uses_own_kernels(target.options) and target.device == "cuda":
            fix = "leave kernels=moec out: CUDA has ONNX Runtime's"
            refusals.append(Refusal("moec's own kernels for ONNX Runtime are for CPUs", str(target), fix))
        return refusals + refused_options(target, OPTIONS)

    def supports(self, program: Program, target: Target) -> list[Refusal]:
        from moec.backends.onnxruntime.packed.quantized import unreadable

        # every operator of the dialect has a composition, but a packed weight that no kernel reads would be unpacked
        # when it is loaded; ATen that torch.onnx lacks is refused by `build`
        return unreadable(program)

    def precision(self, target: Target) -> torch.dtype:
        return PRECISIONS.get(target.options.get("precision", "fp32"), torch.float32)

    def deviation(self, program: Program, target: Target) -> float | None:
        rounds = target.options.get("accuracy") == "int8" and any(
            n.target is torch.ops.moec.dequantize.default for n in program.graph.nodes
        )
        if rounds:
            return ROUNDED
        fast = target.options.get("tf32") == "true" and self.stand_in(target) is None
        return TF32 if fast and self.precision(target) == torch.float32 else None

    def shown(self, folder: Path, target: Target) -> Target:
        from moec.backends.onnx.shown import shown
        from moec.backends.onnxruntime.session.engine import MODEL_FILE

        return shown(folder / MODEL_FILE, target)

    def client_settings(self, target: Target) -> dict[str, str]:
        from moec.backends.onnxruntime.session.opening import client_settings

        return client_settings(target)

    def layouts(self, target: Target) -> tuple[str, ...]:
        served = ("triton",) if uses_own_kernels(target.options) else ("triton", "kserve")
        return ("plain", "genai", *served)

    def legalize(self, target: Target) -> Pipeline:
        return Pipeline.parse("find-moe, fuse-moe").all_optional()

    def build(
        self,
        program: Program,
        target: Target,
        folder: Path,
        optimize_for: str = "latency",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        from moec.backends.onnx.writing import write_model
        from moec.backends.onnxruntime.lowering import lowered
        from moec.backends.onnxruntime.session.cuda_graph import require_fixed_shapes
        from moec.backends.onnxruntime.session.engine import MODEL_FILE
        from moec.backends.onnxruntime.session.own_kernels import put_into

        model, facts = lowered(program, target, optimize_for, progress)
        if target.options.get("graph") == "true":
            require_fixed_shapes(model.metadata_props, str(target))
        write_model(model, folder / MODEL_FILE, progress)
        if uses_own_kernels(target.options):
            put_into(folder)
        self._lowered = program, model
        return facts

    def constants(self, folder: Path) -> Iterable[Constant] | None:
        import onnx_ir as ir

        from moec.backends.onnx.constants import constants_of
        from moec.backends.onnxruntime.session.engine import MODEL_FILE

        return constants_of(ir.load(folder / MODEL_FILE))

    def lowered_constants(
        self, program: Program, target: Target, folder: Path, optimize_for: str = "latency"
    ) -> Iterable[Constant] | None:
        from moec.backends.onnx.constants import constants_of
        from moec.backends.onnxruntime.lowering import lowered

        kept = self._lowered
        return constants_of(kept[1] if kept and kept[0] is program else lowered(program, target, optimize_for)[0])

    def stages(self, program: Program, target: Target, optimize_for: str = "latency") -> Iterator[tuple[str, Engine]]:
        from moec.backends.onnxruntime.lowering import stages
        from moec.backends.onnxruntime.session.opening import providers_of

        return stages(program, target, optimize_for, providers_of(self.stand_in(target) or target))

    def outputs(self, folder: Path) -> tuple[Input, ...]:
        import onnx_ir as ir

        from moec.backends.onnx.tensors import DTYPES
        from moec.backends.onnxruntime.session.engine import MODEL_FILE

        dtypes = {theirs: ours for ours, theirs in DTYPES.items()}
        found = []
        for value in ir.load(folder / MODEL_FILE).graph.outputs:
            assert value.dtype is not None and value.shape is not None
            found.append(
                Input(
                    str(value.name),
                    dtypes[value.dtype],
                    tuple(d if isinstance(d, int) else str(d.value) for d in value.shape),
                )
            )
        return tuple(found)

    def shares_cache(self, folder: Path) -> bool:
        from moec.backends.onnxruntime.attention.kv_cache import SHARED

        return SHARED in _metadata(folder)

    def joins_texts(self, folder: Path) -> bool:
        from moec.backends.onnx.cache_rows import COMPACT

        return COMPACT not in _metadata(folder)

    def stand_in(self, target: Target, built: bool = True) -> Target | None:
        if not self.probe(target).available:
            return None
        here = target.device != "cuda" or "CUDAExecutionProvider" in usable_providers()
        return None if here else replace(target, device="cpu")

    def join(self, folder: Path, parts: Sequence[str]) -> dict[str, str]:
        from moec.backends.onnxruntime.parts import put_beside

        return put_beside(folder, parts)

    def require_joined(self, folder: Path, parts: Sequence[str]) -> None:
        from moec.backends.onnxruntime.parts import require_beside

        require_beside(folder, parts)

    def load_part(self, folder: Path, part: str, target: Target, prepack: bool = True) -> Engine:
        from moec.backends.onnxruntime.parts import file_of

        return self._load(folder, target, prepack, file_of(folder, part).name)

    def load(self, folder: Path, target: Target, prepack: bool = True) -> Engine:
        from moec.backends.onnxruntime.session.engine import MODEL_FILE

        return self._load(folder, target, prepack, MODEL_FILE)

    def _load(self, folder: Path, target: Target, prepack: bool, file: str) -> Engine:
        from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
        from moec.backends.onnxruntime.session.tuning import tune

        engine = OnnxruntimeEngine(folder, target, prepack, file)
        if target.device == "cuda" and prepack:
            engine.prepared = tune(engine, int(target.options.get("tune", TUNED)))
        return engine


def usable_providers() -> list[str]:
    """Providers whose libraries load and whose hardware is here: the list that onnxruntime prints names what was
    compiled in."""
    from moec.backends.onnxruntime.session.libraries import PROVIDER, cuda_is_usable

    return [PROVIDER] * cuda_is_usable() + ["CPUExecutionProvider"]


def _unmade(lacks: str) -> tuple[str, ...]:
    """For `Probe.lacking`: that moec's own kernels are not compiled, or have one of PyTorch's threads alone."""
    from moec.kernels.cpu.library import way_out
    from moec.kernels.cpu.team import why_alone

    if lacks:
        return (f"kernels=moec: {lacks} ({way_out()})",)
    return (f"threads for moec.accelerate on a CPU: {alone}",) if (alone := why_alone()) else ()


def _metadata(folder: Path) -> Mapping[str, str]:
    """What an engine's file says of itself."""
    import onnx_ir as ir

    from moec.backends.onnxruntime.session.engine import MODEL_FILE

    return ir.load(folder / MODEL_FILE).metadata_props
