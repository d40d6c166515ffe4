"""The right side of `proof.py`: small models, the engines that moec makes of them, and wrong ones in their place.

A case is a random model of transformers, saved as a folder, and how it is compiled. Its right engine is compiled once.
A wrong engine is that engine's folder with another `model.onnx`, the manifest's hashes made to agree: whoever reads the
folder sees nothing but numbers that are wrong.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import moec
from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import PAST, SEQUENCE, cache_inputs, without_padding
from moec.program.program import Program
from moec.program.signature import converted
from moec.report.artefacts import hash_artefacts
from moec.targets.backend import find_backend
from moec.targets.target import Target

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN3 = {"moe_intermediate_size": 48, "head_dim": 8, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
MLA = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12,
    "v_head_dim": 10, "moe_intermediate_size": 48, "first_k_dense_replace": 1, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 64,
    "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
GPT_OSS_YARN = {
    "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 64, "rope_theta": 150000.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
# name -> (model class, entries of its config beside SHAPE)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3MoeForCausalLM", QWEN3),
    "vocabulary": ("Qwen3MoeForCausalLM", {**QWEN3, "vocab_size": 16000}),
    "mixtral": ("MixtralForCausalLM", {**MIXTRAL, "intermediate_size": 32}),
    "window": ("MixtralForCausalLM", {**MIXTRAL, "sliding_window": 200}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3}
    ),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        {**MLA, "n_shared_experts": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {**MLA, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "rope_parameters": YARN},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**MIXTRAL, "intermediate_size": 48, "head_dim": 8, "sliding_window": 5, "swiglu_limit": 7.0,
         "rope_parameters": GPT_OSS_YARN},
    ),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        {"moe_intermediate_size": 48, "head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
         "n_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": True, "attention_bias": True,
         "routed_scaling_factor": 1.5},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {"intermediate_size": 24, "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4,
         "num_experts_per_tok": 2, "interleave_moe_layer_step": 1, "no_rope_layer_interval": 2,
         "attention_chunk_size": 7, "floor_scale": 4},
    ),
    "granite_moe": (
        "GraniteMoeForCausalLM",
        {"intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 3, "embedding_multiplier": 2.0,
         "logits_scaling": 0.5, "residual_multiplier": 0.7, "attention_multiplier": 0.3},
    ),
    "olmoe": ("OlmoeForCausalLM", {"intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}),
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 2.0},
    ),
    "phi3": ("Phi3ForCausalLM", {}),
    "nemotron": ("NemotronForCausalLM", {"head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", {"n_inner": 48}),
    "bert": ("BertModel", {}),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and how it is compiled.

    Attributes:
        model: of `MODELS`. pipeline, target: as `moec.compile` takes them.
        strength: of the random weights; activations that reach a clamp need strong ones.
        entries: of the model's config, beside its own.
        on_grid: the experts' weights are numbers that 4 bits can say, as of a model that was trained so.
    """

    model: str
    pipeline: str = ""
    target: str = "onnxruntime"
    strength: float = 1.0
    entries: dict[str, Any] = field(default_factory=dict)
    on_grid: bool = False

    @property
    def title(self) -> str:
        """As the tables name it."""
        target = "" if self.target == "onnxruntime" else self.target
        strong = f"x {self.strength:g}" if self.strength != 1 else ""
        return " ".join(part for part in (self.model, strong, self.pipeline, target) if part)

    def model_with(self, **changes: Any) -> nn.Module:
        """Its random model; `changes` are entries of the config in the place of the case's."""
        model = build(self.model, self.strength, **{**self.entries, **changes})
        with torch.no_grad():
            for weight in (p for p in model.parameters() if self.on_grid and p.dim() == 3):
                weight.copy_(_on_grid(weight))
        return model


def build(name: str, strength: float = 1.0, **changes: Any) -> nn.Module:
    """The random model of a name, in eval mode; `changes` are entries of its config."""
    import transformers

    model_class, entries = MODELS[name]
    config_class = getattr(transformers, model_class).config_class
    model: nn.Module = getattr(transformers, model_class)(config_class(**{**SHAPE, **entries, **changes}))
    generator, saved = torch.Generator().manual_seed(0), model.state_dict()
    with torch.no_grad():
        for key in sorted(saved):
            if saved[key].is_floating_point():
                saved[key].copy_(strength * _random(key, saved[key], generator))
    return model.eval()


def _random(key: str, old: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of enough spread that every term matters, and that tokens disagree about their experts."""
    noise = torch.randn(old.shape, generator=generator)
    if old.dim() == 1 and ("norm" in key or "ln_" in key) and not key.endswith("bias"):
        return old + 0.1 * noise
    if "router" in key or key.endswith("gate.weight"):
        return 0.4 * noise
    return (1.0 if "sinks" in key else 0.2) * noise if old.dim() == 1 else 0.15 * noise


def _on_grid(weight: Tensor, group: int = 16) -> Tensor:
    """The nearest multiples of each group's extreme number over -8, from -8 to 7 of them."""
    groups = weight.unflatten(-1, (-1, group))
    step = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    return ((groups / step).round().clamp(-8, 7) * step).flatten(-2)


class Right:
    """The right engine of a case, in a folder of its own, and what it is compared with."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder, self.engine = case, folder / "model", folder / "right"
        self.wrong = folder / "wrong"
        self.written: dict[int, Tensor] = {}  # texts of the untouched model, by number
        case.model_with().save_pretrained(self.folder)  # type: ignore[operator]  # a PreTrainedModel
        moec.compile(
            self.folder,
            out=self.engine,
            pipeline=case.pipeline,
            target=case.target,
            layout="plain",
            build=not case.target.startswith("tensorrt"),
        )
        self.backend = find_backend(Target.parse(case.target), runtime=False)

    @cached_property
    def source(self) -> Source:
        """The untouched model."""
        return moec.open_source(str(self.folder))

    @cached_property
    def reference(self) -> Engine:
        """The untouched model in eager PyTorch."""
        return self.source.reference()

    @cached_property
    def _captured(self) -> Program:
        return self.capture(self.source)

    @property
    def captured(self) -> Program:
        """Its program, a copy for each caller."""
        return self._captured.clone()

    def capture(self, source: Source) -> Program:
        """A source's program in the precision of the case's target."""
        return source.capture(self.backend.precision(Target.parse(self.case.target)))

    def lower(self, captured: Program) -> Program:
        """What the case's passes and its target's make of a captured program."""
        program, _ = Pipeline.parse(self.case.pipeline).run(captured, Context(seed=0))
        return self.backend.legalize(Target.parse(self.case.target)).run(program, Context(seed=0))[0]

    def put(self, program: Program) -> Path:
        """Build a program as the wrong engine: a folder that differs from the right one in its numbers alone."""
        shutil.rmtree(self.wrong, ignore_errors=True)
        shutil.copytree(self.engine, self.wrong)
        for file in self.wrong.glob("model.onnx*"):
            file.unlink()
        program.finish()
        self.backend.build(program, Target.parse(self.case.target), self.wrong, "latency")
        self.sign(self.wrong)
        return self.wrong

    @staticmethod
    def sign(folder: Path) -> None:
        """Make the manifest of a folder agree with its files."""
        manifest = json.loads((folder / "moec.json").read_text())
        manifest["artefacts"] = [vars(artefact) for artefact in hash_artefacts(folder)]
        (folder / "moec.json").write_text(json.dumps(manifest))

    @cached_property
    def probes(self) -> list[dict[str, Tensor]]:
        """Valid inputs that look where wrong engines differ: short and long texts, many at once, a full cache, and the
        whole vocabulary."""
        found = [self.sample(b, s, p) for b, s, p in ((2, 9, 6), (6, 5, 0), (1, 1, 40), (2, 3, 220), (1, 500, 0))]
        vocabulary = self.source.domains["input_ids"].high
        for tokens in torch.arange(-(-vocabulary // 128) * 128).clamp(max=vocabulary - 1).view(-1, 128).split(4):
            found.append({**self.sample(*tokens.shape, 0), "input_ids": tokens})
        return found

    def sample(self, batch: int, new: int, past: int, seed: int = 7) -> dict[str, Tensor]:
        """A random valid input of these sizes."""
        sizes = {"batch": batch, SEQUENCE: new, PAST: past if cache_inputs(self.source.inputs) else 0}
        return dict(self.source.sample(sizes, seed))

    def distance(self, engine: Path) -> float:
        """The largest max |d|/std of an engine's outputs from the untouched model's, over all probes; infinite where it
        fails or says no number."""
        loaded, worst = moec.load(engine), 0.0
        try:
            for sample in self.probes:
                found = loaded(**converted(loaded.inputs, sample))
                for name, want in self.reference(**sample).items():
                    pair = (without_padding(v, sample, name, loaded.inputs) for v in (want, found[name]))
                    worst = max(worst, _difference(*pair))
        except Exception:
            return math.inf
        finally:
            loaded.close()
        return worst


def _difference(want: Tensor, found: Tensor) -> float:
    difference = float((found.float() - want).abs().max() / want.std())
    return difference if math.isfinite(difference) else math.inf


INT4 = "quantize(bits=4, group=16, attention=16, lm_head=16)"  # the experts, and nothing else
ALL = {"num_experts_per_tok": 8}  # no expert is left out: rounding weights changes no choice
WHOLE_GROUPS = {"intermediate_size": 32}  # 16 does not divide rows of 24
EXACT = [Case(name) for name in MODELS]
RIGHT = [  # forty engines that nobody may call wrong
    *EXACT,
    *(
        Case(name, target="onnxruntime:cpu,precision=fp16")
        for name in ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "granite_moe", "olmoe", "llama", "bert")
    ),
    *(Case(name, "upcycle(experts=4, top_k=2)") for name in ("llama", "qwen2", "gpt2", "nemotron", "phi3")),
    *(Case(name, "quantize(bits=8, group=16)") for name in ("llama", "qwen2")),
    *(Case(name, "quantize(bits=8, group=16)", entries=ALL) for name in ("qwen3_moe", "mixtral")),
    *(Case(name, INT4, on_grid=True) for name in ("qwen3_moe", "qwen2_moe")),
    *(Case(name, INT4, entries=WHOLE_GROUPS, on_grid=True) for name in ("olmoe", "granite_moe")),
]
