"""The models that every backend must take: name -> passes that the user would name."""

from __future__ import annotations

from dataclasses import dataclass

from tests.zoo import dense_configs, moe_configs

TITLES = {
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2-MoE (gated shared expert)",
    "qwen3_moe": "Qwen3-MoE",
    "deepseek_v2": "DeepSeek-V2 (groups, MLA)",
    "deepseek_v3": "DeepSeek-V3 (sigmoid, bias, groups, MLA)",
    "gpt_oss": "gpt-oss (clamped SwiGLU, sinks)",
    "olmoe": "OLMoE",
    "glm4_moe": "GLM4-MoE",
    "llama4": "Llama 4 text (scores before experts)",
    "granite_moe": "Granite-MoE",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma2": "Gemma 2 (GeGLU)",
    "phi3": "Phi-3 (packed gate and up)",
    "nemotron": "Nemotron (ReLU²)",
    "gpt2": "GPT-2 (Conv1D)",
    "bert": "BERT (GELU)",
    "vit": "ViT",
}
UPCYCLE = "upcycle(experts=4, top_k=2)"


@dataclass(frozen=True)
class Case:
    """One model of the zoo and the passes that are named for it."""

    name: str
    pipeline: str

    @property
    def title(self) -> str:
        """How people call the model."""
        return TITLES.get(self.name, self.name)


def cases() -> list[Case]:
    """Every architecture of the zoo: MoE models as they are, dense ones upcycled."""
    return [Case(n, "") for n in moe_configs()] + [Case(n, UPCYCLE) for n in dense_configs()]
