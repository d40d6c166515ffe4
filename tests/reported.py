"""Small models that users' reports led to, each with inputs on which an engine must equal it, or be refused with a
true reason.

`why` says what went wrong when it was tried; the whole kind is to be mended, not the case. Weights are random, seeds
are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers as T
from torch import Tensor, nn

IDS = {"vocab_size": 256, "pad_token_id": 0}
SMALL = dict(
    **IDS,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    inputs: Callable[[], Iterable[dict[str, Tensor]]]
    why: str

    def save(self, folder: str | Path) -> None:
        self.model().save_pretrained(folder)


@torch.no_grad()
def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of enough spread that every term matters."""
    g = torch.Generator().manual_seed(seed)
    for _name, p in model.named_parameters():
        if p.dim() >= 2:
            p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(max(16, p.shape[-1])))
        else:
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model.eval()


def ids(batch: int, length: int, seed: int = 0, low: int = 4) -> Tensor:
    return torch.randint(
        low, 256, (batch, length), generator=torch.Generator().manual_seed(1000 * batch + length + seed)
    )


def texts(*sizes: tuple[int, int]) -> Callable[[], Iterable[dict[str, Tensor]]]:
    def make() -> Iterable[dict[str, Tensor]]:
        for batch, length in sizes:
            x = ids(batch, length)
            yield {"input_ids": x, "attention_mask": torch.ones_like(x)}

    return make


# ---------------------------------------------------------------- a branch on the length
def bigbird() -> nn.Module:
    return spread(
        T.BigBirdForSequenceClassification(
            T.BigBirdConfig(
                **IDS,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=512,
                attention_type="block_sparse",
                block_size=8,
                num_random_blocks=2,
                num_labels=3,
                type_vocab_size=2,
            )
        )
    )


class Expert(nn.Module):
    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(d, h), nn.Linear(h, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Switch(nn.Module):
    """Top-1 with a capacity that has a floor: tokens over it pass by."""

    def __init__(self, d: int = 32, h: int = 64, n: int = 4, factor: float = 1.0, floor: int = 64) -> None:
        super().__init__()
        self.emb, self.gate = nn.Embedding(256, d), nn.Linear(d, n)
        self.experts, self.head = nn.ModuleList(Expert(d, h) for _ in range(n)), nn.Linear(d, 10)
        self.n, self.factor, self.floor = n, factor, floor

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.emb(input_ids)
        x = h.reshape(-1, h.shape[-1])
        weight, expert = self.gate(x).softmax(-1).max(-1)
        capacity = max(int(self.factor * x.shape[0] / self.n), self.floor)
        hot = F.one_hot(expert, self.n)
        keep = (hot.cumsum(0) * hot).sum(-1) <= capacity
        out = torch.zeros_like(x)
        for i, f in enumerate(self.experts):
            out = out + torch.where(((expert == i) & keep)[:, None], f(x) * weight[:, None], 0.0)
        return self.head((x + out).view(h.shape))


class Loop(nn.Module):
    """The loop over experts that most research code has: `torch.where`, a product, an indexed sum."""

    def __init__(self, d: int = 32, h: int = 64, n: int = 4, k: int = 2) -> None:
        super().__init__()
        self.emb, self.router = nn.Embedding(256, d), nn.Linear(d, n, bias=False)
        self.experts, self.head, self.k = nn.ModuleList(Expert(d, h) for _ in range(n)), nn.Linear(d, 10), k

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.emb(input_ids)
        x = h.reshape(-1, h.shape[-1])
        top, chosen = torch.topk(self.router(x), self.k)
        top = top.softmax(-1)
        out = torch.zeros_like(x)
        for i, f in enumerate(self.experts):
            token, nth = torch.where(chosen == i)
            out[token] += top[token, nth, None] * f(x[token])
        return self.head((x + out).view(h.shape))


class OneHot(Loop):
    """All experts on all tokens, and a mask."""

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.emb(input_ids)
        x = h.reshape(-1, h.shape[-1])
        w, i = self.router(x).topk(self.k, -1)
        m = (F.one_hot(i, len(self.experts)).to(w.dtype) * w.softmax(-1)[..., None]).sum(1)
        return self.head(
            (x + torch.einsum("te,ted->td", m, torch.stack([f(x) for f in self.experts], 1))).view(h.shape)
        )


class Speech(nn.Module):
    """Two strided convolutions before a mixture: lengths from 7 frames up, any number of them."""

    def __init__(self, mels: int = 40, d: int = 32) -> None:
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2d(1, d, 3, 2), nn.ReLU(), nn.Conv2d(d, d, 3, 2), nn.ReLU())
        self.lin, self.moe = nn.Linear(d * (((mels - 1) // 2 - 1) // 2), d), Loop(d)

    def forward(self, feats: Tensor) -> Tensor:
        x = self.sub(feats.unsqueeze(1))
        b, c, n, m = x.shape
        x = self.lin(x.transpose(1, 2).reshape(b, n, c * m)).reshape(-1, c)
        top, chosen = torch.topk(self.moe.router(x), 2)
        top, out = top.softmax(-1), torch.zeros_like(x)
        for i, f in enumerate(self.moe.experts):
            token, nth = torch.where(chosen == i)
            out[token] += top[token, nth, None] * f(x[token])
        return (x + out).view(b, n, c)


def own(cls: type[nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return cls().eval()

    return make


def only_ids(*sizes: tuple[int, int]) -> Callable[[], Iterable[dict[str, Tensor]]]:
    return lambda: ({"input_ids": ids(b, n)} for b, n in sizes)


# ---------------------------------------------------------------- inputs that must not vanish
def layoutlm() -> nn.Module:
    return spread(
        T.LayoutLMForTokenClassification(
            T.LayoutLMConfig(
                **IDS,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=130,
                num_labels=5,
                max_2d_position_embeddings=1024,
            )
        )
    )


def boxed() -> Iterable[dict[str, Tensor]]:
    for batch, length in ((2, 9), (3, 31)):
        x, g = ids(batch, length), torch.Generator().manual_seed(length)
        corner = torch.randint(0, 500, (batch, length, 2), generator=g)
        yield {
            "input_ids": x,
            "attention_mask": torch.ones_like(x),
            "bbox": torch.cat([corner, corner + torch.randint(1, 400, corner.shape, generator=g)], -1),
        }


def qwen3_vl_moe() -> nn.Module:
    text = dict(
        **SMALL,
        head_dim=16,
        moe_intermediate_size=48,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    )
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 64,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return spread(
        T.Qwen3VLMoeForConditionalGeneration(
            T.Qwen3VLMoeConfig(
                text_config=text,
                vision_config=vision,
                image_token_id=250,
                video_token_id=251,
                vision_start_token_id=252,
                vision_end_token_id=253,
            )
        )
    )


def image_and_text() -> Iterable[dict[str, Tensor]]:
    x = torch.tensor([[1, 5, 252, 250, 253, 9, 11, 14]])
    yield {
        "input_ids": x,
        "attention_mask": torch.ones_like(x),
        "pixel_values": torch.randn(4, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "mm_token_type_ids": (x == 250).long(),
    }


def bart_mnli() -> nn.Module:
    return spread(
        T.BartForSequenceClassification(
            T.BartConfig(
                vocab_size=256,
                d_model=48,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                max_position_embeddings=128,
                num_labels=3,
                pad_token_id=1,
                bos_token_id=0,
                eos_token_id=2,
                decoder_start_token_id=2,
            )
        )
    )


def ended() -> Iterable[dict[str, Tensor]]:
    for batch, length in ((1, 8), (3, 15)):
        x = ids(batch, length)
        x[:, 0], x[:, -1] = 0, 2
        yield {"input_ids": x, "attention_mask": torch.ones_like(x)}


def detr() -> nn.Module:
    back = T.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    return spread(
        T.DetrForObjectDetection(
            T.DetrConfig(
                use_timm_backbone=False,
                backbone=None,
                use_pretrained_backbone=False,
                backbone_config=back,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                num_queries=7,
                num_labels=4,
            )
        )
    )


def images(*sizes: tuple[int, int, int]) -> Callable[[], Iterable[dict[str, Tensor]]]:
    return lambda: (
        {"pixel_values": torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(b))} for b, h, w in sizes
    )


# ---------------------------------------------------------------- rotary tables that hang on the length
def dynamic_rope() -> nn.Module:
    return spread(
        T.MixtralForCausalLM(
            T.MixtralConfig(
                **SMALL,
                head_dim=16,
                num_local_experts=4,
                num_experts_per_tok=2,
                max_position_embeddings=32,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 6.0},
            )
        )
    )


def longrope() -> nn.Module:
    return spread(
        T.Phi3ForCausalLM(
            T.Phi3Config(
                **SMALL,
                max_position_embeddings=256,
                original_max_position_embeddings=32,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0] * 8,
                    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0],
                    "original_max_position_embeddings": 32,
                },
            )
        )
    )


def qwen3_reranker() -> nn.Module:
    """As published: no pad_token_id in its config."""
    small = {k: v for k, v in SMALL.items() if k != "pad_token_id"}
    return spread(
        T.Qwen3ForSequenceClassification(T.Qwen3Config(**small, head_dim=16, num_labels=1, max_position_embeddings=128))
    )


def lora_beside_base(folder: str | Path) -> nn.Module:
    """A base model's folder that also holds a LoRA adapter (needs peft); returns the adapted model that transformers
    loads from it."""
    from peft import LoraConfig, get_peft_model

    base = spread(T.Qwen2ForCausalLM(T.Qwen2Config(**SMALL, max_position_embeddings=256)))
    base.save_pretrained(folder)
    model = get_peft_model(
        T.AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"], task_type="CAUSAL_LM"
        ),
    )
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(folder)
    return model.eval()


LONG = texts((2, 20), (2, 64), (2, 80), (2, 160), (1, 400))
CASES = {
    "bigbird": Case(
        bigbird,
        LONG,
        "exit 0 'verified', 0.24 wrong from 80 tokens on: torch.export stated a bound of 72 that was "
        "dropped, and the proof's longest text has 74 tokens",
    ),
    "switch": Case(
        own(Switch),
        only_ids((2, 9), (4, 30), (4, 128), (8, 256)),
        "exit 0 'verified', 73 % of the tokens wrong at 8 x 256: the guard on the number of tokens was switched off",
    ),
    "loop": Case(
        own(Loop),
        only_ids((1, 1), (2, 9), (4, 30)),
        "compiles as a model without experts: every expert is a dense FFN on every token, and `inspect` "
        "says all parameters are active",
    ),
    "one-hot": Case(own(OneHot), only_ids((1, 1), (2, 9), (4, 30)), "likewise: nothing is fused, all experts run"),
    "speech": Case(
        own(Speech),
        lambda: (
            {"feats": torch.randn(b, n, 40, generator=torch.Generator().manual_seed(n))}
            for b, n in ((1, 23), (2, 50), (4, 99))
        ),
        "only a fixed length compiles: the sample is too short for the convolutions, and the minimum "
        "that torch.export suggests is ignored",
    ),
    "layoutlm": Case(
        layoutlm,
        boxed,
        "exit 0 'verified' without the input `bbox`: the reference is called without it too, so both agree; 4.4 wrong",
    ),
    "qwen3-vl-moe": Case(qwen3_vl_moe, image_and_text, "exit 0 'verified' without the image: 3.7 wrong, no word of it"),
    "bart-mnli": Case(
        bart_mnli,
        ended,
        "refused with a constraint that the model hasn't (decoder_input_ids, which it makes itself) and "
        "a fix that can't be used",
    ),
    "detr": Case(detr, images((1, 64, 64), (2, 64, 96)), "exit 70: AttributeError, no image_size in the config"),
    "dynamic-rope": Case(
        dynamic_rope,
        texts((2, 8), (1, 20), (2, 31), (2, 33), (1, 48), (2, 100)),
        "refused, and the reason ('a loop over experts') is not true. The model keeps state: compare "
        "with one made anew for each input",
    ),
    "longrope": Case(
        longrope,
        texts((2, 8), (1, 31), (2, 33), (2, 100)),
        "with a cache: a raw AssertionError in M207; --no-cache works and is not offered",
    ),
    "qwen3-reranker": Case(
        qwen3_reranker,
        texts((1, 9), (1, 30)),
        "the reason is right, the fix speaks of shapes; pad_token_id is what is missing",
    ),
}
