"""What `moe_cpu.py` compares: one block in a one-layer model, and every way to run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 4096
OURS = ("moec latency", "moec throughput")


@dataclass(frozen=True)
class Case:
    """A block. inner: rows of an expert's gate."""

    title: str
    experts: int
    top_k: int
    inner: int
    hidden: int = 1024

    @property
    def expert_bytes(self) -> int:
        return 3 * self.hidden * self.inner * 4

    def model(self) -> Any:
        """The one-layer model; the same weights in every process."""
        from transformers import MixtralConfig, MixtralModel, Qwen3MoeConfig, Qwen3MoeModel

        torch.manual_seed(0)
        small: dict[str, Any] = {
            "hidden_size": self.hidden,
            "vocab_size": VOCABULARY,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": 1,
        }
        small |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
        if self.experts == 8:
            return MixtralModel(
                MixtralConfig(num_local_experts=self.experts, intermediate_size=self.inner, **small)
            ).train(False)
        config = Qwen3MoeConfig(
            num_experts=self.experts, moe_intermediate_size=self.inner, norm_topk_prob=True, **small
        )
        return Qwen3MoeModel(config).train(False)


CASES = {
    "A": Case("8 experts of 2048, top-2 (Mixtral)", 8, 2, 2048),
    "B": Case("64 experts of 512, top-8 (Qwen3-MoE)", 64, 8, 512),
}


# ---------------------------------------------------------------------- contestants: each returns prepare(ids) -> run()
Prepare = Callable[[Tensor], Callable[[], Any]]


def torch_model(case: Case, implementation: str, compiled: bool = False) -> Prepare:
    """The untouched model in PyTorch; `compiled` compiles its whole forward, for each shape anew."""
    model = case.model()
    model.set_experts_implementation(implementation)
    call = torch.compile(model, dynamic=False) if compiled else model

    def prepare(ids: Tensor) -> Callable[[], Any]:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        call(**inputs)  # compiles for a new shape
        return lambda: call(**inputs)[0].numpy()

    return prepare


def moec_accelerate(case: Case) -> Prepare:
    """The model in PyTorch with moec's kernels for its experts; needs `make kernels`."""
    import moec

    model = moec.accelerate(case.model())

    def prepare(ids: Tensor) -> Callable[[], Any]:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        return lambda: model(**inputs)[0].numpy()

    return prepare


def moec_engine(case: Case, optimize_for: str, target: str = "onnxruntime") -> Prepare:
    """What a user gets from `moec.compile`; the target `onnxruntime:cuda` is ONNX Runtime's MoE operator, run on the
    CPU here."""
    import moec
    from moec.targets.backend import find_backend
    from moec.targets.target import Target

    folder = Path(tempfile.mkdtemp(prefix="moec-bench-")) / "engine"
    moec.compile(case.model(), out=folder, target=target, optimize_for=optimize_for)
    engine = (
        moec.load(folder)
        if target != "onnxruntime:cuda"
        else find_backend(Target.parse("onnxruntime")).load(folder, Target.parse("onnxruntime"))
    )
    return lambda ids: lambda: engine(input_ids=ids, attention_mask=torch.ones_like(ids))["last_hidden_state"].numpy()


def transformers_engine(case: Case) -> Prepare:
    """transformers' own ONNX exporter with its fusions for the CPU."""
    import onnxruntime as ort
    from transformers.exporters import exporter_onnx

    model = case.model()
    model.config.use_cache = False
    ids = torch.arange(14).view(2, 7)
    exporter: Any = exporter_onnx
    config = exporter.OnnxConfig(dynamic=True, ort_fusions="cpu")
    exported = exporter.OnnxExporter().export(
        model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, config=config
    )
    folder = tempfile.mkdtemp(prefix="moec-bench-")
    exported.save_pretrained(folder)
    session = ort.InferenceSession(str(next(Path(folder).glob("*.onnx"))), providers=["CPUExecutionProvider"])

    def prepare(ids: Tensor) -> Callable[[], Any]:
        feeds = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
        return lambda: session.run(["last_hidden_state"], feeds)[0]

    return prepare


def reference(case: Case) -> Prepare:
    """The untouched model, for the outputs; and how many experts its tokens chose."""
    model, ids_seen = case.model(), []
    model.set_experts_implementation("eager")
    model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: ids_seen.append(args[1]))

    def prepare(ids: Tensor) -> Callable[[], Any]:
        def run() -> tuple[Tensor, int]:
            output = model(input_ids=ids)[0]
            return output.numpy(), len(ids_seen.pop().unique())

        return run

    return prepare


def reader(case: Case) -> Prepare:
    """Summing as many bytes as the chosen experts have; `ids` holds their number."""
    memory = torch.ones(case.experts * case.expert_bytes // 4)
    return lambda count: memory[: int(count) * case.expert_bytes // 4].sum


# the order in which processes are made in the first sitting
CONTESTANTS: dict[str, Callable[[Case], Prepare]] = {
    "reference": reference,
    "read": reader,
    "moec latency": lambda case: moec_engine(case, "latency"),
    "moec throughput": lambda case: moec_engine(case, "throughput"),
    "moec, own kernel": lambda case: moec_engine(case, "latency", "onnxruntime:kernels=moec"),
    "moec accelerate": moec_accelerate,
    "MoE operator": lambda case: moec_engine(case, "latency", "onnxruntime:cuda"),
    "eager": lambda case: torch_model(case, "eager"),
    "grouped_mm": lambda case: torch_model(case, "grouped_mm"),
    "batched_mm": lambda case: torch_model(case, "batched_mm"),
    "compile": lambda case: torch_model(case, "grouped_mm", compiled=True),
    "compile batched_mm": lambda case: torch_model(case, "batched_mm", compiled=True),
    "OnnxExporter": transformers_engine,
}
