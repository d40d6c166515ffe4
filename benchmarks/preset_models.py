"""A mixture of experts that grew out of a trained dense model: upcycled by moec, then trained on, so that its experts
and its router are what training makes of them."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from quality_model import BALANCE, WINDOW, library_bytes
from torch import Tensor
from torch.nn.functional import cross_entropy

from moec.training import switch_loss

PIPELINE = "upcycle(experts=8, top_k=2)"
BATCH, PEAK, WARM_UP = 4, 6e-4, 10
_CHARACTERS = {"train": 6_000_000, "val": 400_000}  # of the library's sources: more than the steps read
_PART = 200_000  # characters that the tokenizer takes at a time


def upcycled(dense: str, folder: Path, steps: int) -> Path:
    """A dense model's folder as a Mixtral of 8 copies, 2 a token, trained for so many steps on the Python library's
    sources, unless that was done before; `train.npy` and `val.npy` hold the tokens, `val` from files of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    tokens = write_tokens(tokenizer, folder)
    model = AutoModelForCausalLM.from_pretrained(_copies(dense, folder / "copies"), dtype=torch.float32)
    model.config.output_router_logits = True
    model.set_experts_implementation("eager")  # a loop over the experts is the quickest at this size
    print(f"perplexity {_perplexity(model, tokens['val']):.2f} as upcycled", file=sys.stderr)
    _train(model, tokens["train"], steps)
    print(f"perplexity {_perplexity(model, tokens['val']):.2f} after {steps} steps", file=sys.stderr)
    model.config.output_router_logits = False
    tokenizer.save_pretrained(folder)
    model.eval().half().save_pretrained(folder)
    return folder


def write_tokens(tokenizer: object, folder: Path, parts: tuple[str, ...] = ("train", "val")) -> dict[str, Tensor]:
    """The library's sources as tokens, int64, by part; kept as `train.npy` and `val.npy`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in library_bytes().items():
        if name in parts and not (folder / f"{name}.npy").exists():
            text = data.tobytes().decode(errors="ignore")[: _CHARACTERS[name]]
            pieces = [text[k : k + _PART] for k in range(0, len(text), _PART)]
            ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]  # type: ignore[operator]
            np.save(folder / f"{name}.npy", np.array(ids, np.uint16))
    return {n: torch.from_numpy(np.load(folder / f"{n}.npy").astype(np.int64)) for n in parts}


def _copies(dense: str, folder: Path) -> Path:
    """The checkpoint that the pass makes."""
    from moec.compiler.open import open_source
    from moec.huggingface.saving.save import save_hf
    from moec.pipeline.passes import Context
    from moec.pipeline.pipeline import Pipeline

    if not folder.exists():
        source = open_source(dense, cache=False)
        program, _ = Pipeline.parse(PIPELINE).run(source.capture(torch.float32), Context(0))
        save_hf(program, folder, source)
    return folder


@torch.no_grad()
def _perplexity(model: torch.nn.Module, tokens: Tensor, windows: int = 12) -> float:
    """Of windows that stand apart in the text."""
    model.eval()
    step = (len(tokens) - WINDOW) // windows
    texts = [tokens[None, k * step : k * step + WINDOW] for k in range(windows)]
    losses = [float(model(input_ids=ids, labels=ids).loss) for ids in texts]
    return math.exp(sum(losses) / windows)


def _train(model: torch.nn.Module, tokens: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.0)
    generator, start = torch.Generator().manual_seed(1), time.perf_counter()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1, (step + 1) / WARM_UP) * (0.475 * (1 + math.cos(math.pi * step / steps)) + 0.05)
        at = torch.randint(0, len(tokens) - WINDOW, (BATCH,), generator=generator)
        ids = torch.stack([tokens[k : k + WINDOW] for k in at])
        output = model(input_ids=ids)
        loss = cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + BALANCE * sum(switch_loss(logits, top_k=2) for logits in output.router_logits)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: {time.perf_counter() - start:.0f} s, loss {loss:.3f}", file=sys.stderr, flush=True)
