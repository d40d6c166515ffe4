"""A small Mixtral that is trained on this machine's own Python library, for measurements that random weights say
nothing about.

Each layer's loads are balanced for themselves, as Switch Transformers' are (Fedus et al. 2021, arXiv 2101.03961). The
loss that transformers adds counts all layers as one: trained with it, half of the experts of this model died, and bits
that are taken from the dead cost nothing.
"""

from __future__ import annotations

import math
import random
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moec.training import switch_loss

SKIP = ("/site-packages/", "/test/", "/tests/", "/idlelib/", "/encodings/", "/pydoc_data/")
WINDOW, BATCH, HELD_BACK, BALANCE = 256, 8, 0.05, 0.01


def library_bytes() -> dict[str, np.ndarray]:
    """The standard library's sources as bytes, each of them a token: `train`, and `val` from files that are in no other
    part."""
    root = sysconfig.get_paths()["stdlib"]
    files = sorted(p for p in Path(root).rglob("*.py") if not any(part in str(p) for part in SKIP))
    random.Random(0).shuffle(files)
    cut = int(len(files) * HELD_BACK)
    return {
        name: np.frombuffer(b"\n".join(p.read_bytes() for p in part), np.uint8)
        for name, part in (("val", files[:cut]), ("train", files[cut:]))
    }


def trained(folder: Path, steps: int) -> Path:
    """Train for so many steps, unless that was done before: four layers of 16 experts of 192, top-2, 5 M parameters;
    writes `train.npy` and `val.npy` too. The same steps give the same model on the same processor, however busy it is.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    text = library_bytes()
    for name, part in text.items():
        np.save(folder / f"{name}.npy", part)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=256,
        tie_word_embeddings=True,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=16,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        router_aux_loss_coef=0.0,
        output_router_logits=True,
        sliding_window=None,
    )
    model, threads = MixtralForCausalLM(config), torch.get_num_threads()
    model.set_experts_implementation(
        "eager"
    )  # a loop over the experts is the quickest at this size, and so is one thread
    torch.set_num_threads(1)
    _train(model, torch.from_numpy(text["train"].astype(np.int64)), steps)
    torch.set_num_threads(threads)
    model.config.output_router_logits = False
    model.eval().save_pretrained(folder)
    return folder


def _train(model: torch.nn.Module, tokens: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    generator, start = torch.Generator().manual_seed(1), time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.475 * (1 + math.cos(math.pi * step / steps)) + 0.05)
        at = torch.randint(0, len(tokens) - WINDOW, (BATCH,), generator=generator)
        ids = torch.stack([tokens[k : k + WINDOW] for k in at])
        output = model(input_ids=ids, labels=ids)
        loss = output.loss + BALANCE * sum(switch_loss(logits, top_k=2) for logits in output.router_logits)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(
                f"training: step {step} of {steps}, {time.perf_counter() - start:.0f} s, loss {output.loss.item():.3f}",
                file=sys.stderr,
                flush=True,
            )
