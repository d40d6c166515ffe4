"""The failures of MoE conversion that people reported, rebuilt as wrong engines of small models.

Each names the report that it stands for, `owner/repository#number` on GitHub; the failure is rebuilt, not the report's
code. FOUND marks those that were found while moec was attacked, without a public report.
"""

from __future__ import annotations

from dataclasses import dataclass

import proof_edits as edits
import torch
from proof_cases import INT4 as EXPERTS_IN_4_BITS
from proof_cases import Case
from proof_changes import (
    Captured,
    Centred,
    Change,
    Config,
    File,
    Lowered,
    Model,
    argument,
    aten,
    baked,
    capacity,
    constant,
    dialect,
    each_layer,
    outputs,
    part,
    results,
    routed,
    rule,
    swapped,
    then,
    times,
    weights,
    without,
    zero,
)
from torch import nn

FOUND = "found here"


@dataclass(frozen=True)
class Mutant:
    """A failure, rebuilt.

    Attributes:
        name: what is wrong. case: the right engine. change: how it is made wrong.
        report: the public report that it stands for, or FOUND.
        where: what a bisection should name, part of the first wrong layer's name; empty for any.
    """

    name: str
    case: Case
    change: Change
    report: str = FOUND
    where: str = ""

    @property
    def url(self) -> str:
        """Where to read the report; empty without one."""
        return "" if self.report == FOUND else f"https://github.com/{self.report.replace('#', '/issues/')}"


QWEN3, MIXTRAL, QWEN2_MOE, OLMOE = Case("qwen3_moe"), Case("mixtral"), Case("qwen2_moe"), Case("olmoe")
V2, V3, GPT_OSS, LLAMA4, GRANITE = map(Case, ("deepseek_v2", "deepseek_v3", "gpt_oss", "llama4", "granite_moe"))
GEMMA2, GPT2, GLM4, LLAMA, WINDOW = map(Case, ("gemma2", "gpt2", "glm4_moe", "llama", "window"))
STRONG = Case("gpt_oss", strength=4.0)
INT4 = Case("qwen3_moe", EXPERTS_IN_4_BITS, on_grid=True)
ATTENTION_0, ATTENTION_1, MLP_0, MLP_1 = (f"layers.{n}.{block}" for block in ("self_attn", "mlp") for n in (0, 1))
BF16, F32 = (aten.to.dtype, torch.bfloat16), (aten.to.dtype, torch.float32)
DOWN, GATE_UP, NORM, PACKED = r"down_proj$", r"gate_up_proj$", aten.add.Tensor, r"experts.*_packed$"


ROUTING = [
    Mutant("softmax of the softmax", QWEN3, results(aten.softmax.int, (aten.softmax.int, -1)),
           "huggingface/transformers#45120", MLP_0),
    Mutant("softmax for sigmoid", V3, rule(score="softmax"), "NVIDIA/TensorRT-Model-Connect#662", MLP_1),
    Mutant("sigmoid for softmax", QWEN3, rule(score="sigmoid"), FOUND, MLP_0),
    Mutant("correction bias counts in the weights", V3, Captured(edits.bias_in_the_weights), "vllm-project/vllm#12002",
           MLP_1),
    Mutant("correction bias ignored", V3, without(dialect.moe.default, 3), "microsoft/onnxruntime#27675",
           MLP_1),
    Mutant("group limit ignored", V3, rule(groups=1, top_groups=1), FOUND, MLP_1),
    Mutant("a group's score is its best expert's", V3, rule(group_score="max"), FOUND, MLP_1),
    Mutant("norm_topk_prob ignored", QWEN3, rule(combine="scores"), "pytorch/torchtitan#1448", MLP_0),
    Mutant("raw logits as weights", OLMOE, rule(score="identity"), "sgl-project/sglang#35160", MLP_0),
    Mutant("normalised although the config says not", OLMOE, rule(combine="renormalize"),
           "ServiceNow/Fast-LLM#83", MLP_0),
    Mutant("softmax over the chosen, not over all", QWEN2_MOE, rule(score="identity", combine="softmax"),
           "Dao-AILab/sonic-moe#5", MLP_0),
    Mutant("softmax over all, not over the chosen", GPT_OSS, rule(score="softmax", combine="scores"),
           "pytorch/torchtitan#2258", MLP_0),
    Mutant("routed scale dropped", V3, rule(scale=1.0), "sgl-project/sglang#8511", MLP_1),
    Mutant("routed scale applied twice", V3, rule(scale=6.25), "vllm-project/vllm#45037", MLP_1),
    Mutant("routed scale dropped without renormalisation", V2, rule(scale=1.0), "sgl-project/sglang-jax#1282",
           MLP_1),
    Mutant("top-k written into the code", MIXTRAL, rule(top_k=3), "JieShibo/MoLE#7", MLP_0),
    Mutant("top-k one too few", QWEN2_MOE, rule(top_k=2), "ROCm/aiter#5595", MLP_0),
    Mutant("the sample's top-k baked in", MIXTRAL, routed(baked, 1), "Tencent/YOLO-Master#241", MLP_0),
    Mutant("one choice for the whole text", MIXTRAL, routed(edits.first_token_of_everybody, 1), FOUND, MLP_0),
    Mutant("router's logits rounded as bfloat16 rounds", QWEN3, Captured(edits.after_routers((aten.mul.Tensor, 64.0),
           (aten.round.default,), (aten.mul.Tensor, 1 / 64))), "vllm-project/vllm#14027", MLP_0),
    Mutant("router of 4 bits", MIXTRAL, weights(r"mlp.gate.weight", lambda w: (w / w.abs().max() * 7).round()
           * w.abs().max() / 7), "huggingface/transformers#48801", MLP_0),
    Mutant("router's bias dropped", GPT_OSS, without(dialect.moe.default, 2), "pytorch/torchtitan#2319",
           MLP_0),
    Mutant("the first layer's router everywhere", QWEN3, Model(edits.from_layer_0("mlp.gate.weight")), FOUND,
           MLP_1),
    Mutant("weights of the chosen exchanged", MIXTRAL, argument(dialect.experts.default, 2, (aten.flip.default, [-1])),
           FOUND, MLP_0),
    Mutant("routing weights applied twice", MIXTRAL, argument(dialect.experts.default, 2, (aten.square.default,)),
           "vllm-project/vllm#43694", MLP_0),
    Mutant("routing weights not applied", MIXTRAL, rule(combine="ones"), "edwardcapriolo/deliverance#87",
           MLP_0),
    Mutant("scores after the experts, not before", LLAMA4, rule(score_before=False),
           "vllm-project/llm-compressor#1907", "layers.0.feed_forward"),
    Mutant("tokens beyond a capacity dropped", MIXTRAL, routed(capacity, 2), "marin-community/marin#8953",
           MLP_0),
]  # fmt: skip
EXPERTS = [
    Mutant("gate and up exchanged", MIXTRAL, weights(GATE_UP, edits.halves_exchanged), "sgl-project/sglang#32430",
           MLP_0),
    Mutant("interleaved rows read as halves", GPT_OSS, weights(GATE_UP, edits.interleaved), "ROCm/aiter#4398",
           MLP_0),
    Mutant("SiLU alone for SwiGLU", MIXTRAL, Lowered(edits.no_up), FOUND, MLP_0),
    Mutant("GELU for SiLU", OLMOE, rule(activation="gelu"), FOUND, MLP_0),
    Mutant("GELU by erf for tanh", GEMMA2, Captured(edits.exchanged("approximate", "tanh", "none")),
           "vllm-project/vllm#41574", MLP_0),
    Mutant("clamp of 6.9 for 7", STRONG, rule(limit=6.9), FOUND, MLP_0),
    Mutant("clamp dropped", STRONG, rule(limit=0.0), "sgl-project/sglang#39939", MLP_0),
    Mutant("clamp of nearly 0", GPT_OSS, rule(limit=1e-6), "microsoft/onnxruntime#27221", MLP_0),
    Mutant("SwiGLU's alpha is 1", GPT_OSS, rule(alpha=1.0), "sgl-project/sglang#39939", MLP_0),
    Mutant("up without its + 1", GPT_OSS, rule(beta=0.0), "sgl-project/sglang#39939", MLP_0),
    Mutant("bias of the down projections dropped", GPT_OSS, without(dialect.moe.default, 7),
           "allenai/OLMo-core#763", MLP_0),
    Mutant("biases of gate and up dropped", GPT_OSS, without(dialect.moe.default, 6),
           "EfficientMoE/MoE-Infinity#136", MLP_0),
    Mutant("down bias not weighted by the router", GPT_OSS, Captured(edits.bias_of_every_expert),
           "NVIDIA-NeMo/Automodel#2591", MLP_0),
    Mutant("an expert that the sample did not reach is lost", MIXTRAL, weights(r"layers.1.*down_proj$", part(5, zero)),
           "Tencent/YOLO-Master#74", MLP_1),
    Mutant("the last expert is missing", QWEN3, weights(DOWN, part(-1, zero)), FOUND, MLP_0),
    Mutant("no expert's weights are loaded", MIXTRAL, weights(DOWN, zero), "NVIDIA/Megatron-LM#5844", MLP_0),
    Mutant("one expert x 1.001", QWEN3, weights(r"layers.1.*down_proj$", part(5, times(1.001))), FOUND,
           MLP_1),
    Mutant("one expert x 1.5", OLMOE, weights(r"layers.1.*down_proj$", part(5, times(1.5))), FOUND, MLP_1),
    Mutant("square projections transposed", MIXTRAL, weights(DOWN, lambda w: w.mT),
           "huggingface/transformers#47031", MLP_0),
    Mutant("experts permuted in one layer", QWEN3, weights(r"layers.1.*experts", lambda w: w.roll(1, 0)), FOUND,
           MLP_1),
    Mutant("the first layer's experts everywhere", MIXTRAL, Model(edits.from_layer_0("mlp.experts.down_proj")), FOUND,
           MLP_1),
    Mutant("the last columns of each expert cut", QWEN3, weights(DOWN, part((..., slice(-8, None)), zero)),
           "vllm-project/vllm-ascend#12201", MLP_0),
    Mutant("shared expert's gate dropped", QWEN2_MOE, results(aten.sigmoid.default, (aten.mul.Tensor, 0.0),
           (aten.add.Tensor, 1.0)), "NousResearch/torchtitan#36", MLP_0),
    Mutant("shared expert forgotten", V3, weights(r"shared_experts.down_proj", zero), "divyamakkar0/JAXformer#21",
           MLP_1),
    Mutant("shared expert added twice", V3, weights(r"shared_experts.down_proj", times(2)),
           "sgl-project/sglang#37948", MLP_1),
    Mutant("shared expert divided by the routed scale", V3, weights(r"shared_experts.down_proj", times(0.4)),
           "sgl-project/sglang#28237", MLP_1),
]  # fmt: skip
ATTENTION = [
    Mutant("window ignored", WINDOW, Config({"sliding_window": None}), "ggml-org/llama.cpp#8227", ATTENTION_0),
    Mutant("window of 199 for 200", WINDOW, constant(200, 199), "NVIDIA-NeMo/Megatron-Bridge#2656",
           ATTENTION_0),
    Mutant("window of 201 for 200", WINDOW, constant(200, 201), "ml-explore/mlx-lm#390", ATTENTION_0),
    Mutant("window of 150 for 200", WINDOW, constant(200, 150), FOUND, ATTENTION_0),
    Mutant("short window off by one", GPT_OSS, constant(5, 6, aten.sub.Tensor), "huggingface/transformers#29623",
           ATTENTION_0),
    Mutant("window in every layer", GPT_OSS, Config({"layer_types": ["sliding_attention"] * 2}),
           "vllm-project/vllm#33594", ATTENTION_1),
    Mutant("windowed and full layers exchanged", GEMMA2, Config({"layer_types": ["full_attention",
           "sliding_attention"]}), "NVIDIA-NeMo/Megatron-Bridge#4875", ATTENTION_0),
    Mutant("cache capped at 128 tokens", MIXTRAL, Config({"sliding_window": 128}), "huggingface/optimum-executorch#218",
           ATTENTION_0),
    Mutant("sinks dropped", GPT_OSS, without(dialect.attention.default, 4), "vllm-project/vllm-metal#550",
           ATTENTION_0),
    Mutant("attention mask ignored", QWEN3, File(edits.mask_as_ones(0)), "ml-explore/mlx-lm#1906", ATTENTION_0),
    Mutant("attention mask ignored from batch 5 on", QWEN3, File(edits.mask_as_ones(5)), FOUND, ATTENTION_0),
    Mutant("key-value heads tiled, not repeated", QWEN3, each_layer(edits.tiled_heads), "onnx/onnx#7274",
           ATTENTION_0),
    Mutant("norms of q and k skipped", QWEN3, each_layer(lambda layer: [setattr(layer.self_attn, name, nn.Identity())
           for name in ("q_norm", "k_norm")]), "airockchip/rknn-llm#251", ATTENTION_0),
    Mutant("norms of q and k exchanged", QWEN3, each_layer(lambda layer: swapped("q_norm", "k_norm")(layer.self_attn)),
           "kyegomez/MegaVIT#17", ATTENTION_0),
    Mutant("attention multiplier ignored", GRANITE, constant(0.3, 8**-0.5, dialect.attention.default),
           "OpenNMT/CTranslate2#1882", ATTENTION_0),
    Mutant("attention's softcap dropped", GEMMA2, constant(2.0, 0.0, dialect.attention.default),
           "vllm-project/vllm-metal#665", ATTENTION_0),
    Mutant("biases of q, k and v dropped", Case("qwen2"), weights(r"[qkv]_proj.bias", zero),
           "sbryngelson/ANEForge#253", ATTENTION_0),
    Mutant("rope theta of 10000", LLAMA, Config({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
           "lyogavin/airllm#368", ATTENTION_0),
    Mutant("rope scaling ignored", LLAMA, Config({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
           "Blaizzy/mlx-vlm#1710", ATTENTION_0),
    Mutant("rope scaling inverted", GPT_OSS, weights(r"inv_freq", times(64)), "kekzl/imp#584", ATTENTION_0),
    Mutant("YaRN's attention factor dropped", GPT_OSS, constant(1.2079441541679836, 1.0), "guoqingbao/xinfer#329",
           ATTENTION_0),
    Mutant("YaRN's factor of the softmax dropped", V3, constant(0.32627118099068225, 20**-0.5),
           "onnxruntime/mobius#548", ATTENTION_0),
    Mutant("interleaved rope read as halves", V3, Config({"rope_interleave": False}), "hw-native-sys/pypto-lib#244",
           ATTENTION_0),
    Mutant("partial rope on the whole head", GLM4, Config({"rope_parameters": {"rope_type": "default", "rope_theta":
           1e4, "partial_rotary_factor": 1.0}}), "AI-Hypercomputer/maxtext#4616", ATTENTION_0),
    Mutant("low rope frequencies x 1.05", QWEN3, weights(r"inv_freq", part(-1, times(1.05))), FOUND,
           ATTENTION_0),
    Mutant("rope frequencies in bfloat16", QWEN3, weights(r"inv_freq", lambda w: w.bfloat16().float()),
           "sgl-project/sglang-jax#1472", ATTENTION_0),
    Mutant("rope in layers without", LLAMA4, Config({"no_rope_layers": [1, 1]}), "huggingface/transformers#37344",
           ATTENTION_1),
    Mutant("attention temperature dropped", LLAMA4, Config({"attn_temperature_tuning": False}),
           "AI-Hypercomputer/maxtext#1611", ATTENTION_1),
    Mutant("attention chunks ignored", LLAMA4, Config({"attention_chunk_size": 512}), "AI-Hypercomputer/maxtext#1642",
           ATTENTION_0),
    Mutant("positions count padding", QWEN3, Captured(edits.positions_of_columns), "thu-nics/C2C#19", ATTENTION_0),
    Mutant("positions start anew beside a cache", QWEN3, Captured(edits.positions_from_zero), FOUND, ATTENTION_0),
    Mutant("cache written as zeros", QWEN3, outputs(lambda program, values: [values[0], *(
           then(program, v, (aten.mul.Tensor, 0.0)) for v in values[1:])]), "sonos/torch-to-nnef#330"),
    Mutant("keys and values exchanged in the cache", MIXTRAL, outputs(lambda _program, v: [v[0], v[2], v[1], *v[3:]])),
]  # fmt: skip
REST = [
    Mutant("positions from 131 on are zeros", GPT2, weights("wpe", part(slice(131, None), zero))),
    Mutant("positions off by one", GPT2, weights("wpe", lambda w: w.roll(1, 0))),
    Mutant("rotary table of the sample's length", LLAMA, Captured(edits.clamped_positions(127)),
           "neuralmagic/sparseml#1826", ATTENTION_0),
    Mutant("a branch of the sample's length", QWEN3, Captured(edits.mask_cut_at(72)), "huggingface/optimum#505",
           ATTENTION_0),
    Mutant("wrong from the second text on", Case("phi3"), outputs(lambda program, values: [then(program,
           values[0], (aten.mul.Tensor, 0.0), (aten.add.Tensor, then(program, values[0], (aten.slice.Tensor, 0,
           0, 1)))), *values[1:]]), "NVIDIA/TensorRT#4853"),
    Mutant("logits halved from batch 5 on", QWEN3, File(edits.halved_where("input_ids", 0, 5))),
    Mutant("logits halved with 13 cached tokens", QWEN3, File(edits.halved_where("past_key_values.0.key", 2, 13))),
    Mutant("epsilon x 10", QWEN3, constant(1e-6, 1e-5, NORM), "apache/tvm#15856"),
    Mutant("norms without their 1 + weight", GEMMA2, constant(1.0, 0.0, NORM), "pytorch/executorch#19901",
           "layers.0.input_layernorm"),
    Mutant("LayerNorm for RMSNorm", MIXTRAL, each_layer(lambda layer: setattr(layer, "input_layernorm", Centred(
           layer.input_layernorm))), FOUND, "layers.0.input_layernorm"),
    Mutant("norms of a layer exchanged", MIXTRAL, each_layer(swapped("input_layernorm", "post_attention_layernorm")),
           FOUND, "layers.0.input_layernorm"),
    Mutant("last norm skipped", OLMOE, Model(lambda model: setattr(model.model, "norm", nn.Identity())), FOUND, "norm"),
    Mutant("embedding multiplier dropped", GRANITE, constant(2.0, 1.0, aten.mul.Tensor), "OpenNMT/CTranslate2#1882"),
    Mutant("residual multiplier dropped", GRANITE, constant(0.7, 1.0, aten.mul.Tensor), "ndif-team/nnterp#54"),
    Mutant("logits multiplied, not divided", GRANITE, constant(0.5, 2.0, aten.div.Tensor), "unslothai/unsloth#1218"),
    Mutant("last softcap dropped", GEMMA2, Config({"final_logit_softcapping": None}), "vllm-project/vllm#52173"),
    Mutant("tied head left random", LLAMA, Model(edits.untied), "huggingface/transformers#43429", "lm_head"),
    Mutant("rare rows of the embedding lost", Case("vocabulary"), weights("embed_tokens", part(
           torch.tensor([3, 977, 4999, 8888, 12345, 15999]), zero)), FOUND, "embed_tokens"),
    Mutant("the vocabulary's last rows lost", Case("vocabulary"), weights("embed_tokens", part(slice(-20, None), zero)),
           "unslothai/unsloth-zoo#923", "embed_tokens"),
    Mutant("padding's row is zero", QWEN3, weights("embed_tokens", part(0, zero)), FOUND, "embed_tokens"),
    Mutant("int4 nibbles exchanged", INT4, weights(PACKED, lambda w: w << 4 | w >> 4, Lowered),
           "openvinotoolkit/openvino#32123", MLP_0),
    Mutant("int4 codes signed, not offset", INT4, weights(PACKED, lambda w: w ^ 0x88, Lowered),
           "1bit-MONSTER/1bit-MONSTER#572", MLP_0),
    Mutant("int4 zero point off by one", INT4, weights(PACKED, edits.each_nibble(lambda n: (n.int() - 1).clamp(min=0)),
           Lowered), "vllm-project/vllm#38966", MLP_0),
    Mutant("int4 lanes borrow from each other", INT4, weights(PACKED, edits.borrowed, Lowered),
           "gittensor-ai-lab/sparkinfer#723", MLP_0),
    Mutant("group size written into the kernel", INT4, weights(r"gate_up_proj_scale$", edits.scales_of_pairs, Lowered),
           "sgl-project/sglang#38573", MLP_0),
    Mutant("scales stored inverse", INT4, weights(r"experts.*_scale$", lambda s: 1 / s, Lowered),
           "FlashML-org/FreeToken#390", MLP_0),
    Mutant("grouped scales permuted", INT4, weights(r"experts.*_scale$", lambda s: s.roll(1, 1), Lowered),
           "vllm-project/vllm#13769", MLP_0),
    Mutant("codes of one expert one step up", INT4, weights(r"layers.1.*_packed$", part(5, edits.each_nibble(lambda n: (
           n.int() + 1).clamp(max=15))), Lowered), FOUND, MLP_1),
    Mutant("squares of a norm overflow float16", MIXTRAL, argument(aten.pow.Tensor_Scalar, 0, (aten.mul.Tensor, 1e4),
           (aten.to.dtype, torch.float16), F32), "microsoft/onnxruntime#11384", "layers.0.input_layernorm"),
    Mutant("logits in bfloat16", QWEN3, outputs(lambda program, values: [then(program, values[0], BF16, F32),
           *values[1:]])),
    Mutant("experts rounded to bfloat16", OLMOE, weights(r"experts", lambda w: w.bfloat16().float()), FOUND,
           MLP_0),
]  # fmt: skip
MUTANTS = [*ROUTING, *EXPERTS, *ATTENTION, *REST]
