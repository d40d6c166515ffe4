"""The engines that `moec probe` times: made by moec itself, so that what is timed is what it emits.

Three kinds. A chain of matrix products in each form, of more bytes than a processor's caches hold: what reading and
multiplying weights costs, by rows. Mixtures of two shapes in each form: the same for experts, and what finding and
passing them costs. Two small decoders of different depth, whose weights weigh nothing: all that is neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moec import registry
from moec.execution.engine import Engine
from moec.frontend.module_source import ModuleSource
from moec.frontend.source import Opening
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.backend import find_backend
from moec.targets.target import Target

BACKEND, GROUP = "onnxruntime", 64


@dataclass(frozen=True)
class Form:
    """How weights are stored and computed with.

    Attributes:
        name: as the record has it. bits: of a weight; 32 for float32.
        rounded: whether activations are rounded to 8 bits (the target's `accuracy=int8`).
    """

    name: str
    bits: int
    rounded: bool = False

    @property
    def bytes_a_weight(self) -> float:
        """With the scale of its group, in float32."""
        return 4.0 if self.bits == 32 else self.bits / 8 + 4 / GROUP


# 8 bits without rounding have no kernel of their own: such weights are unpacked to float32 when they are loaded
FORMS = (Form("fp32", 32), Form("int4", 4), Form("int4 rounded", 4, True), Form("int8 rounded", 8, True))


@dataclass(frozen=True)
class Block:
    """A mixture's shape: hidden size, rows of an expert's gate, experts, and how many a token takes."""

    hidden: int
    inner: int
    experts: int
    top_k: int

    @property
    def expert(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.inner


class Chain(nn.Module):
    """Products of square matrices, one after the other."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.matrices = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(count))
        for matrix, value in zip(self.matrices, _cut(width * width, count, 1 / math.sqrt(width)), strict=True):
            matrix.weight = nn.Parameter(value.view(width, width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.matrices:
            x = matrix(x)
        return x


class Gates(nn.Module):
    """What stands between products: rows are cut in halves, one gates the other, and the sum goes on."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.width, self.count = width, count
        self.scale = nn.Parameter(torch.full((2 * width,), 0.5), requires_grad=False)

    @property
    def numbers(self) -> int:
        """How many numbers of a row go into operators, and how often: the whole row is scaled, cut, joined and added,
        halves are activated and multiplied."""
        return self.count * 10 * self.width

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.count):
            gate, up = (x * self.scale).chunk(2, -1)
            y = nn.functional.silu(gate) * up
            x = x + torch.cat([y, gate], -1)
        return x


class Mixtures(nn.Module):
    """Blocks that read the same rows; their outputs are added."""

    def __init__(self, block: Block, count: int) -> None:
        super().__init__()
        self.top_k, generator = block.top_k, torch.Generator().manual_seed(0)
        sizes = (block.experts, 2 * block.inner, block.hidden), (block.experts, block.hidden, block.inner)
        numbers = [_cut(math.prod(size), count, 1 / math.sqrt(size[2])) for size in sizes]
        self.routers, self.w_in, self.w_out = (nn.ParameterList() for _ in range(3))
        for first, second in zip(*numbers, strict=True):
            # logits of variance 1, as models have: QMoE leaves out what weighs less than 1e-8 of a token's sum
            router = torch.randn(block.experts, block.hidden, generator=generator) / math.sqrt(block.hidden)
            for held, value in ((self.routers, router), (self.w_in, first), (self.w_out, second)):
                shape = {id(self.routers): router.shape, id(self.w_in): sizes[0], id(self.w_out): sizes[1]}[id(held)]
                held.append(nn.Parameter(value.view(shape), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for router, w_in, w_out in zip(self.routers, self.w_in, self.w_out, strict=True):
            total = total + torch.ops.moec.moe(x, router, None, None, w_in, w_out, top_k=self.top_k)
        return total

    def loads(self, x: Tensor) -> Tensor:
        """How many of the rows choose each expert, `[blocks, experts]`."""
        chosen = [(x @ router.T).topk(self.top_k, -1).indices.flatten() for router in self.routers]
        return torch.stack([torch.bincount(ids, minlength=len(self.routers[0])) for ids in chosen])


def _cut(size: int, count: int, scale: float) -> list[Tensor]:
    """Different numbers for each of several weights, from memory that they share: nothing is drawn twice."""
    step = 4099
    pool = torch.randn(size + step * count, generator=torch.Generator().manual_seed(0)).mul_(scale)
    return [pool[step * n : step * n + size] for n in range(count)]


def chain(width: int, count: int) -> Callable[[], Program]:
    """The program of a chain of products, made when it is asked for."""
    return lambda: _captured(Chain(width, count), width)


def mixtures(model: Mixtures, block: Block) -> Callable[[], Program]:
    """The program of mixtures."""
    return lambda: _captured(model, block.hidden)


def gates(model: Gates) -> Callable[[], Program]:
    """The program of gates."""
    return lambda: _captured(model, 2 * model.width)


def engine(program: Program, form: Form, folder: Path, threads: int = 0) -> Engine:
    """Build a program in a form, and load it."""
    rule = f"accuracy={'int8' if form.rounded else 'exact'}" + (f",threads={threads}" if threads else "")
    target = Target.parse(f"{BACKEND}:{rule}")
    backend = find_backend(target)
    if form.bits < 32:
        pipeline = Pipeline.parse(f"quantize(bits={form.bits}, group={GROUP})").all_optional()
        program = pipeline.run(program, Context())[0]
    legal, _ = backend.legalize(target).run(program, Context())
    folder.mkdir()
    backend.build(legal, target, folder, "latency")
    return backend.load(folder, target)


def _captured(model: nn.Module, width: int) -> Program:
    return ModuleSource(model.eval(), {"x": torch.randn(3, width)}, {"x": ("rows", None)}).capture()


@dataclass(frozen=True)
class Small:
    """A decoder of Llama's shape, or of Qwen3's where queries and keys are `normed`; its weights weigh next to
    nothing."""

    layers: int
    key_value_heads: int
    normed: bool = False
    hidden: int = 32
    heads: int = 8
    head_size: int = 64
    vocabulary: int = 512

    @property
    def matrices(self) -> int:
        """Weights of a layer's matrices."""
        return self.hidden * (2 * self.head_size * (self.heads + self.key_value_heads) + 3 * self.hidden)

    def config(self) -> dict[str, Any]:
        """As a config.json has it."""
        return {
            "architectures": [f"{'Qwen3' if self.normed else 'Llama'}ForCausalLM"],
            "model_type": "qwen3" if self.normed else "llama", "hidden_size": self.hidden,
            "intermediate_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads, "head_dim": self.head_size, "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
            "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        """By the names that a checkpoint has."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        h = self.hidden
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, h)}
        found |= {"model.norm.weight": (h,)}
        for n in range(self.layers):
            at = f"model.layers.{n}"
            found |= {f"{at}.self_attn.{role}_proj.weight": (rows, h) for role, rows in (("q", queries), ("k", keys))}
            found |= {f"{at}.self_attn.v_proj.weight": (keys, h), f"{at}.self_attn.o_proj.weight": (h, queries)}
            found |= {f"{at}.mlp.{role}_proj.weight": (h, h) for role in ("gate", "up", "down")}
            found |= {f"{at}.{name}_layernorm.weight": (h,) for name in ("input", "post_attention")}
            normed = ("q", "k") if self.normed else ()
            found |= {f"{at}.self_attn.{role}_norm.weight": (self.head_size,) for role in normed}
        generator = torch.Generator().manual_seed(0)
        return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in found.items()}

    def program(self, folder: Path) -> Program:
        """Written as a checkpoint into a new folder, and captured with its cache."""
        from safetensors.torch import save_file

        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config()))
        save_file(self.weights(), folder / "model.safetensors", {"format": "pt"})
        kinds = (registry.find("sources", name) for name in registry.names("sources"))
        kind = next(k for k in kinds if k.opens(str(folder), Opening()))
        program: Program = kind.open(str(folder), Opening()).capture()
        return program
