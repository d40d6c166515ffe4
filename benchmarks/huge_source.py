"""DeepSeek-V3 as it is published, but for its numbers: they are drawn where they are read, and no file holds them.

Names, shapes, dtypes, FP8 tiles of 128 x 128 and `weight_scale_inv` are those of the published checkpoint (without its
layer for multi-token prediction, which transformers leaves out, too). A tensor is a window of one block of drawn
numbers, at a place that the hash of its name says; so any rows of any tensor are read at the cost of a slice, again and
again the same, and the source takes no time from what it feeds. Experts share numbers, then, but at other places, with
other scales: nothing that moec does looks at that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.huggingface.formats import fp8
from moec.huggingface.formats.compressed_tensors import in_float32
from moec.huggingface.reading import skeleton
from moec.huggingface.reading.conversion import convert
from moec.huggingface.source import HuggingFaceSource
from moec.weights.lazy import Weight, rowwise
from moec.weights.shards import write_shards

TILE = 128
DRAWN = 2**24 - 3  # numbers: a prime, so that rows do not begin at the same places again
LARGEST = 448.0  # of float8 E4M3
SPREAD = 6.0  # standard deviations that it stands for


def small_config(layers: int = 4, **other: Any) -> Any:
    """The same architecture, small: one dense layer, then mixtures of 8 experts, unless told else."""
    sizes = {
        "first_k_dense_replace": 1, "hidden_size": 256, "n_routed_experts": 8, "moe_intermediate_size": 128,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128,
        "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32, "head_dim": 32,
        "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2, "vocab_size": 1024,
    }  # fmt: skip
    return deepseek_v3(layers, **(sizes | other))


def deepseek_v3(layers: int = 61, **other: Any) -> Any:
    """The config of the published model, with so many of its layers; its first three are dense ones."""
    from transformers import DeepseekV3Config

    return DeepseekV3Config(num_hidden_layers=layers, architectures=["DeepseekV3ForCausalLM"], **other)


class Drawn:
    """A model whose checkpoint is drawn: what a `HuggingFaceSource` reads it from."""

    def __init__(self, config: Any, seed: int = 0) -> None:
        from transformers import DeepseekV3ForCausalLM

        self.config, self.model_class = config, DeepseekV3ForCausalLM
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(DRAWN, generator=generator)
        codes = (numbers * (LARGEST / SPREAD)).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        self._codes, self._numbers = codes.repeat(2), numbers[: DRAWN // 8].bfloat16().repeat(2)
        self._steps = 1 + torch.arange(TILE * TILE + 7).remainder_(7) / 8  # of scales from tile to tile
        self.stored = dict(self._tensors())

    @property
    def size_bytes(self) -> int:
        """Bytes of the checkpoint, as it is published."""
        return sum(weight.size_bytes for weight in self.stored.values())

    def hashes(self) -> dict[str, str]:
        """There are no files."""
        return {}

    @cached_property
    def template(self) -> Any:
        """The model without weights."""
        return skeleton.build(self.model_class, self.config, torch.float32)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """What the checkpoint stands for, decoded when it is read."""
        return fp8.decode(self.stored, (TILE, TILE))

    def captured(self, dtype: torch.dtype) -> tuple[Any, dict[str, Weight]]:
        """A private model on the meta device and its lazy weights."""
        model = skeleton.build(self.model_class, self.config, dtype)
        weights = convert(model, self.weights)
        skeleton.tie(model, weights)
        return model, weights

    def loaded(self) -> Any:
        """The untouched model in float32; for small ones."""
        state = {name: in_float32(weight) for name, weight in self.weights.items()}
        options = {"config": self.config, "dtype": torch.float32, "experts_implementation": "eager"}
        return self.model_class.from_pretrained(None, state_dict=state, local_files_only=True, **options).eval()

    # ------------------------------------------------------------------ the files' tensors
    def _tensors(self) -> Iterator[tuple[str, Weight]]:
        c = self.config
        yield self._plain("model.embed_tokens.weight", (c.vocab_size, c.hidden_size), 1.0)
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            yield from self._attention(at + "self_attn.")
            if layer < c.first_k_dense_replace:
                yield from self._network(at + "mlp.", c.intermediate_size)
            else:
                yield from self._mixture(at + "mlp.")
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield self._ones(f"{at}{name}.weight", c.hidden_size)
        yield self._ones("model.norm.weight", c.hidden_size)
        yield self._plain("lm_head.weight", (c.vocab_size, c.hidden_size), c.hidden_size**-0.5)

    def _attention(self, at: str) -> Iterator[tuple[str, Weight]]:
        c = self.config
        heads, inner = c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim
        yield from self._tiles(at + "q_a_proj", c.q_lora_rank, c.hidden_size)
        yield self._ones(at + "q_a_layernorm.weight", c.q_lora_rank)
        yield from self._tiles(at + "q_b_proj", heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), c.q_lora_rank)
        yield from self._tiles(at + "kv_a_proj_with_mqa", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size)
        yield self._ones(at + "kv_a_layernorm.weight", c.kv_lora_rank)
        yield from self._tiles(at + "kv_b_proj", heads * inner, c.kv_lora_rank)
        yield from self._tiles(at + "o_proj", c.hidden_size, heads * c.v_head_dim)

    def _mixture(self, at: str) -> Iterator[tuple[str, Weight]]:
        c = self.config
        yield self._plain(at + "gate.weight", (c.n_routed_experts, c.hidden_size), c.hidden_size**-0.5)
        bias = at + "gate.e_score_correction_bias"
        yield bias, Weight((c.n_routed_experts,), torch.float32, bias, lambda a, b: torch.zeros(b - a))
        for e in range(c.n_routed_experts):
            yield from self._network(f"{at}experts.{e}.", c.moe_intermediate_size)
        yield from self._network(at + "shared_experts.", c.moe_intermediate_size * c.n_shared_experts)

    def _network(self, at: str, inner: int) -> Iterator[tuple[str, Weight]]:
        hidden = self.config.hidden_size
        for name, rows, columns in (
            ("gate_proj", inner, hidden),
            ("up_proj", inner, hidden),
            ("down_proj", hidden, inner),
        ):
            yield from self._tiles(at + name, rows, columns)

    def _tiles(self, name: str, rows: int, columns: int) -> Iterator[tuple[str, Weight]]:
        """A matrix in FP8 and the scales of its tiles."""
        name += ".weight"
        place, across = _place(name), -(-columns // TILE)
        size = columns**-0.5 * SPREAD / LARGEST

        def scales(start: int, stop: int) -> Tensor:
            first = (start * across + place) % 7
            return self._steps[first : first + (stop - start) * across].reshape(-1, across) * size

        yield name, self._window(name, self._codes, place, (rows, columns))
        shape = (-(-rows // TILE), across)
        yield name + fp8.SCALE, Weight(shape, torch.float32, name + fp8.SCALE, scales, by_rows=True)

    def _plain(self, name: str, shape: tuple[int, int], size: float) -> tuple[str, Weight]:
        """A matrix in bfloat16."""
        window = self._window(name, self._numbers, _place(name), shape)
        return name, rowwise(name, lambda rows: rows * size, window)

    def _ones(self, name: str, width: int) -> tuple[str, Weight]:
        return name, Weight((width,), torch.bfloat16, name, lambda a, b: torch.ones(b - a, dtype=torch.bfloat16))

    @staticmethod
    def _window(name: str, numbers: Tensor, place: int, shape: tuple[int, int]) -> Weight:
        """Rows of numbers that go round; those of a matrix of an expert are a view."""
        once = len(numbers) // 2

        def read(start: int, stop: int) -> Tensor:
            first, count = (place + start * shape[1]) % once, (stop - start) * shape[1]
            if count <= once:
                return numbers[first : first + count].view(-1, shape[1])
            return torch.cat([numbers[first:once], *[numbers[:once]] * math.ceil(count / once)])[:count].view(
                -1, shape[1]
            )

        return Weight(shape, numbers.dtype, name, read, by_rows=True)


def _place(name: str) -> int:
    """Where a tensor's numbers begin."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")


def write_folder(config: Any, folder: Path) -> None:
    """The drawn checkpoint as the folder that it would be published as; for small ones."""
    folder.mkdir(parents=True)
    config.quantization_config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [TILE, TILE]}
    config.save_pretrained(folder)
    del config.quantization_config
    write_shards(folder, Drawn(config).stored, 5 * 10**9)


def drawn_source(config: Any, cache: bool = True) -> HuggingFaceSource:
    """The model as a source to compile."""
    return HuggingFaceSource("DeepSeek-V3, drawn", Drawn(config), cache)
