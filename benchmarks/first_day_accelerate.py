"""First day, stages `accelerate` and `decoder`: transformers models with moec's kernels, under a CUDA graph.

`accelerate` holds the logits of small models against the untouched model in float64: the error may be twice that of
the untouched model at the same dtype, as it is eagerly. It is the median over tokens, since in 16 bits a token whose
experts nearly tie takes others, on either side. The graph is captured with one text and replayed with another, so that
nothing of the first may be left in it.

`decoder` is four layers as Qwen3-30B-A3B has them, with random weights: tokens a second of a step in its CUDA graph,
for moec, for transformers' `grouped_mm` and for the eager loop, after the logits of a prompt have been compared so.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import product
from typing import Any

import torch
from first_day_errors import TYPICAL, allowed, typical
from first_day_rows import Rows
from torch import Tensor, nn

import moec
from moec.dialect.experts import experts
from moec.kernels import dispatch
from tests import zoo

MODELS = ("qwen3_moe", "gpt_oss", "mixtral", "deepseek_v3")
# wider than the tests' own, so that tiles are full
WIDER = {"hidden_size": 256, "moe_intermediate_size": 192, "intermediate_size": 192}
PROMPT, BATCHES, CONTESTANTS = 512, (1, 8), ("eager", "grouped_mm", "moec")


def ids_of(seed: int, device: str, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, zoo.VOCAB, shape, generator=generator).to(device)


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def replayed(model: nn.Module, first: Tensor, then: Tensor) -> Tensor:
    """A CUDA graph of the model, captured with the first text and replayed with the other."""
    given = first.clone()
    logits(model, given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = logits(model, given)
    given.copy_(then)
    graph.replay()
    torch.cuda.synchronize()
    return out.clone()


def judge(rows: Rows, name: str, dtype: torch.dtype, device: str) -> None:
    """One small model at one dtype."""
    changes = {k: v for k, v in WIDER.items() if device != "cpu" and (name, k) != ("gpt_oss", "moe_intermediate_size")}
    model = zoo.build(name, **changes).to(dtype).to(device)
    model.set_experts_implementation("eager")  # type: ignore[operator]
    size = (1, 5) if device == "cpu" else (2, 24)
    first, then = ids_of(1, device, size), ids_of(2, device, size)
    exact, plain = logits(deepcopy(model).double(), then), logits(model, then)
    moec.accelerate(model)
    bound = allowed(typical(plain, exact), dtype, 1024)
    rows.check("moec", typical(logits(model, then), exact), TYPICAL, bound)
    if device != "cpu":
        judge_graph(rows, model, (first, then), exact, bound)


def judge_graph(rows: Rows, model: nn.Module, texts: tuple[Tensor, Tensor], exact: Tensor, bound: float) -> None:
    """The same model's CUDA graph."""
    try:
        got = replayed(model, *texts)
    except RuntimeError as error:  # transformers' own code may copy from the host
        torch.cuda.synchronize()
        rows.refuse("moec in a CUDA graph", str(error))
    else:
        rows.check("moec in a CUDA graph", typical(got, exact), TYPICAL, bound)


@cache
def kernels_on_cpu() -> None:
    """Without a GPU the operator runs its reference; from now on the CPU's tensors go to the kernels too, which Triton
    interprets."""
    experts.register_kernel("cpu")(dispatch.experts)


def accelerate(rows: Rows, device: str, small: bool = False) -> None:
    """The stage of small models."""
    if device == "cpu":
        kernels_on_cpu()
    dtypes = ("float32",) if small else ("bfloat16", "float32", "float16")
    with torch.no_grad():
        for name, dtype in rows.todo(list(product(MODELS[: 2 if small else 4], dtypes)), " ".join):
            judge(rows, name, getattr(torch, dtype), device)


# ---------------------------------------------------------------------- four layers of a large model
def large(device: str, small: bool) -> Any:
    """Random Qwen3-MoE, in bfloat16; `small`: of the same kind, for a CPU."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128, "num_attention_heads": 32}
    heads = {"num_key_value_heads": 4, "head_dim": 128, "num_experts_per_tok": 8, "vocab_size": 151936}
    if small:
        sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 8, "num_attention_heads": 4}
        heads = {"num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2, "vocab_size": zoo.VOCAB}
    config = Qwen3MoeConfig(**sizes, **heads, num_hidden_layers=4, norm_topk_prob=True, max_position_embeddings=4096)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return Qwen3MoeForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


class Step:
    """One token a row after a prompt, the cache in fixed buffers, so that a graph of it can be replayed."""

    def __init__(self, model: Any, batch: int, prompt: int) -> None:
        from transformers import StaticCache

        device = next(model.parameters()).device
        model.set_attn_implementation("sdpa")
        self.model, self.cache = (
            model,
            StaticCache(config=model.config, max_cache_len=prompt + 128),
        )  # for two times 30 steps
        self.ids = ids_of(3, str(device), (batch, prompt))
        self.token, self.place = self.ids[:, -1:].clone(), torch.full((batch, 1), prompt, device=device)
        model(input_ids=self.ids, past_key_values=self.cache, use_cache=True)

    def __call__(self) -> Tensor:
        given = {"input_ids": self.token, "position_ids": self.place, "past_key_values": self.cache}
        return self.model(**given, use_cache=True).logits[:, -1]


def step_ms(step: Step, captured: bool) -> float:
    """Median of a step's time, by events, and by the clock where there are none."""
    run: Callable[[], Any] = step
    if captured:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay
    times = []
    for _ in range(30 if step.ids.is_cuda else 2):
        start = time.perf_counter()
        run()
        if step.ids.is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def decoder(rows: Rows, device: str, small: bool = False) -> None:
    """The stage of four layers."""
    if device == "cpu":
        kernels_on_cpu()
    prompt = 5 if small else PROMPT
    with torch.no_grad():
        for batch in rows.todo(BATCHES, lambda b: f"four layers of Qwen3-30B, batch {b}, after {prompt} tokens"):
            gc.collect()
            model = large(device, small)
            model.set_experts_implementation("eager")  # which float64 can take
            text = ids_of(4, device, (1, prompt))
            exact = logits(deepcopy(model).double(), text)
            plain = typical(logits(model, text), exact)
            for who in CONTESTANTS:
                moec.accelerate(model) if who == "moec" else model.set_experts_implementation(who)
                error, bound = typical(logits(model, text), exact), allowed(plain, torch.bfloat16, 1)
                rows.check(who, error, TYPICAL, bound) if who == "moec" else rows.figure(who, error, TYPICAL)
                speed(rows, who, Step(model, batch, prompt))


def speed(rows: Rows, who: str, step: Step) -> None:
    """Tokens a second, as Python calls it and from a CUDA graph. The eager loop waits for the GPU, and has no graph."""
    for captured in (False, True) if step.ids.is_cuda and who != "eager" else (False,):
        name = f"{who} in a CUDA graph" if captured else who
        try:
            ms = step_ms(step, captured)
        except RuntimeError as error:
            rows.refuse(name, str(error))
            continue
        rows.figure(name, round(len(step.ids) / ms * 1e3, 1), "tokens/s", ms_a_layer=round(ms / 4, 4))
