"""What carving a large model takes: a Llama with random weights, cut layer by layer on random tokens, its weights read
from disk as they are needed.

usage: python benchmarks/carve_large.py [--layers 16] [--hidden 2048] [--inner 8192] [--tokens 4096] [--threads 1]
    [--how "carve(experts=16, active=8)"] [--json]

The defaults are a Llama 3.2 of 1 B: 1.2 billion parameters, 2.5 GB on disk. Said are the seconds of wall and of CPU
time that the pass takes, and the largest memory of the process, which has loaded PyTorch and transformers, too. What
comes out is not looked at: random weights have nothing to route by.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from reporting import add_output, environment, lines_of, rows_of_one, show

import moec
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline

VOCABULARY, WINDOW = 32000, 256
_WRITE = """
import sys, torch, transformers
hidden, inner, layers, vocabulary = map(int, sys.argv[2:])
config = transformers.LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner,
    num_hidden_layers=layers, num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 256),
    tie_word_embeddings=True, dtype="bfloat16")
torch.set_default_dtype(torch.bfloat16)
transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])
"""


def measured(folder: Path, options: argparse.Namespace) -> dict[str, tuple[Any, str]]:
    """Seconds and bytes of one carve."""
    program = moec.capture(folder, cache=False)
    ids = torch.randint(3, VOCABULARY, (options.tokens,), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(CalibrationText("random", 0, WINDOW), "", ids)
    wall, cpu = time.perf_counter(), time.process_time()
    _, steps = Pipeline.parse(options.how).run(program, Context(0, calibration=calibration))
    return {
        "layers": (len(steps[-1].facts["layers"]), ""),
        "wall time": (round(time.perf_counter() - wall, 1), "s"),
        "CPU time": (round(time.process_time() - cpu, 1), "s"),
        "peak RSS": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "B"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--how", default="carve(experts=16, active=8)")
    add_output(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = [options.hidden, options.inner, options.layers, VOCABULARY]
    with tempfile.TemporaryDirectory(prefix="moec-carve-large-") as folder:
        subprocess.run([sys.executable, "-c", _WRITE, folder, *map(str, sizes)], check=True)
        found = measured(Path(folder), options)
    case = f"{options.how}, {options.layers} layers of {options.hidden} and {options.inner}, {options.tokens} tokens"
    report = {**environment(), "rows": rows_of_one(case, found)}
    show(report, lines_of(report["rows"]), options)


if __name__ == "__main__":
    main()
