"""A long run: thousands of generations in one process. Does memory stay flat, and is every text the one that its prompt
got first?

usage: python benchmarks/long_run.py [--generations 2000] [--states KIND] [--engine DIR] [--seed 0] [--json]

By default a small random Qwen3-MoE (4 layers, hidden 128, 8 experts, top-2) is compiled first; with `--states` a model
that carries another kind of state from token to token (`long_run_models.py`): convolutions' windows, the matrices of
gated delta nets, of Mamba, of Mamba-2 or of lightning attention, an indexer's keys, or the keys and values of an
encoder. Each generation takes 1 to 4 prompts out of 60 (1 to 120 tokens), in one padded batch, and writes a random
number of tokens, up to 80. A row has to agree with the longest text that its prompt has got so far, in whatever company
that was. Resident memory is read after each generation; the quarters' means are compared. Exit status 1 when a text
differs or memory grew by more than 2 % between the first and the last quarter.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from long_run_models import STATES, VOCABULARY, compile_small
from reporting import add_output, environment, lines_of, show
from torch import Tensor

import moec
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.generation import generate, pad
from moec.execution.memory import rss_bytes
from moec.execution.parts import respond

PROMPTS, PROMPT, NEW, BATCHES = 60, 120, 80, (1, 2, 3, 4)
GROWTH = 1.02


def write(engine: Any, ids: Tensor, mask: Tensor, tokens: int) -> list[list[int]]:
    """A text for each prompt; an encoder reads the prompts where there is one, and the decoder starts with token 0."""
    if isinstance(engine, EncoderDecoderEngine):
        given, start = {"input_ids": ids, "attention_mask": mask}, torch.zeros(len(ids), 1, dtype=torch.int64)
        steps = respond(engine, given, start, max_tokens=tokens)
    else:
        steps = generate(engine, ids, mask, max_tokens=tokens)
    return torch.stack(list(steps), dim=1).tolist()


def run(folder: Path, generations: int, seed: int) -> dict[str, Any]:
    """Everything that was counted and measured."""
    engine, chance = moec.load(folder), random.Random(seed)
    prompts = [[chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, PROMPT))] for _ in range(PROMPTS)]
    longest: dict[int, list[int]] = {}
    batches, resident, tokens, different, repeated = Counter[int](), list[int](), 0, list[str](), 0
    start = time.monotonic()
    for number in range(generations):
        chosen = [chance.randrange(PROMPTS) for _ in range(chance.choice(BATCHES))]
        ids, mask = pad([prompts[c] for c in chosen])
        rows = write(engine, ids, mask, chance.randint(1, NEW))
        for prompt, row in zip(chosen, rows, strict=True):
            known = longest.setdefault(prompt, row)
            both = min(len(known), len(row))
            repeated += known is not row
            if known[:both] != row[:both]:
                different.append(f"generation {number}, prompt {prompt}, batch {len(chosen)}")
            longest[prompt] = max(known, row, key=len)
        batches[len(chosen)] += 1
        tokens += sum(map(len, rows))
        resident.append(rss_bytes())
    seconds = time.monotonic() - start
    variety = statistics.mean(len(set(text)) for text in longest.values())
    return {
        "generations": generations,
        "texts": sum(size * count for size, count in batches.items()),
        "compared": repeated,
        "different": different,
        "batches": dict(sorted(batches.items())),
        "tokens": tokens,
        "seconds": seconds,
        "variety": variety,
        "resident": resident,
    }


def quarters(resident: list[int]) -> list[float]:
    """The mean of each quarter, in bytes."""
    size = max(1, len(resident) // 4)
    return [statistics.mean(resident[k * size : (k + 1) * size] or resident[-1:]) for k in range(4)]


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    means = quarters(found["resident"])
    figures = {
        "generations": (found["generations"], "runs"),
        "texts": (found["texts"], "texts"),
        "texts compared with an earlier one": (found["compared"], "texts"),
        "texts that differ": (len(found["different"]), "texts"),
        "tokens": (found["tokens"], "tokens"),
        "time": (found["seconds"], "s"),
        "speed": (found["tokens"] / found["seconds"], "tokens/s"),
        "different tokens in a text": (found["variety"], "tokens"),
        **{f"RSS, quarter {k + 1}": (mean, "B") for k, mean in enumerate(means)},
        "RSS, most": (max(found["resident"]), "B"),
        "RSS, last quarter / first": (means[3] / means[0], "ratio"),
    }
    return [{"case": name, "who": "moec", "value": value, "unit": unit} for name, (value, unit) in figures.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--states", choices=STATES, default="keys")
    parser.add_argument(
        "--engine",
        type=Path,
        help="an engine folder with at least 512 tokens in its vocabulary, instead of the small model",
    )
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = run(
            options.engine or compile_small(Path(temporary) / "engine", options.states),
            options.generations,
            options.seed,
        )
    rows = rows_of(found)
    show({**environment(), "rows": rows}, lines_of(rows), options)
    for text in found["different"][:10]:
        print(f"differs: {text}", file=sys.stderr)
    return int(bool(found["different"]) or rows[-1]["value"] > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
