"""Three fine-tunes of one language model on three kinds of text that lie on most machines, for `merge.py`: C headers,
manual pages in English, and JSON."""

from __future__ import annotations

import gzip
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

KINDS = ("headers", "manual", "json")
WINDOW, BATCH, PEAK, WARM_UP = 256, 4, 5e-4, 15
_OF_A_FILE, _OF_A_FOLDER = 12_000, 8  # characters, and files: no file and no generated family fills a text
_CHARACTERS = {"train": 2_400_000, "calibration": 150_000, "val": 150_000}
_REQUEST = re.compile(r"^[.'].*$\n?", re.MULTILINE)  # of roff
_ESCAPE = re.compile(r"\\(?:f(?:\(..|\[[^]]*\]|.)|s[+-]?\d+|\*(?:\(..|\[[^]]*\]|.)|[&|^/,:%])")


def _headers() -> Iterable[Path]:
    return Path("/usr/include").rglob("*.h")


def _manual() -> Iterable[Path]:
    return Path("/usr/share/man").glob("man[1-8]/*.gz")


def _json() -> Iterable[Path]:
    roots = {Path(sys.base_prefix), Path(sys.prefix), Path("/usr/share"), Path("/usr/lib"), Path("/usr/local")}
    return (path for root in roots for path in root.rglob("*.json"))


_FILES: dict[str, Callable[[], Iterable[Path]]] = {"headers": _headers, "manual": _manual, "json": _json}


def texts(kind: str, seed: int) -> dict[str, str]:
    """A kind's text by part; no file is in two parts, and the seed decides which is in which."""
    files = sorted({path.resolve() for path in _FILES[kind]() if path.is_file()})
    random.Random(seed).shuffle(files)
    seen: Counter[Path] = Counter()
    found, parts, needed = dict.fromkeys(_CHARACTERS, ""), list(_CHARACTERS)[::-1], dict(_CHARACTERS)
    for path in files:
        seen[path.parent] += 1
        if (seen[path.parent] > _OF_A_FOLDER and kind == "json") or not parts:
            continue
        found[parts[0]] += _read(path)
        if len(found[parts[0]]) >= needed[parts[0]]:
            parts.pop(0)
    return found


def _read(path: Path) -> str:
    """The beginning of a file; what roff is told to do is left out of a manual page."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    if path.suffix == ".gz":
        text = _ESCAPE.sub("", _REQUEST.sub("", text)).replace("\\-", "-")
    return text[:_OF_A_FILE] + "\n\n"


def write_texts(tokenizer: object, folder: Path, seed: int) -> dict[str, dict[str, Tensor]]:
    """Tokens, int64, by kind and part; kept in the folder as `KIND-PART.npy`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        if not all((folder / f"{kind}-{part}.npy").exists() for part in _CHARACTERS):
            for part, text in texts(kind, seed).items():
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
                np.save(folder / f"{kind}-{part}.npy", np.array(ids, np.uint16))
    return {
        kind: {part: torch.from_numpy(np.load(folder / f"{kind}-{part}.npy").astype(np.int64)) for part in _CHARACTERS}
        for kind in KINDS
    }


def fine_tuned(base: str, tokens: Tensor, folder: Path, steps: int, seed: int, embeddings: bool) -> Path:
    """A folder with the base model, trained on for so many steps; made once.

    Args:
        embeddings: train them (and the head, which is tied to them) too, or leave them as they are.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (folder / "config.json").exists():
        return folder
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.train()
    model.get_input_embeddings().weight.requires_grad_(embeddings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK, betas=(0.9, 0.95), weight_decay=0.0)
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1, (step + 1) / WARM_UP) * (0.475 * (1 + math.cos(math.pi * step / steps)) + 0.05)
        at = torch.randint(0, len(tokens) - WINDOW - 1, (BATCH,), generator=generator)
        ids = torch.stack([tokens[k : k + WINDOW + 1] for k in at])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids[:, :-1]).logits
        loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step + 1 == steps:
            said = f"{folder.name}, step {step}: {time.perf_counter() - start:.0f} s, loss {loss:.3f}"
            print(said, file=sys.stderr, flush=True)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder
