"""What workers cost and save: GPTQ of a random mixture in this process, and by workers of Ray, to the same bytes?

usage: python benchmarks/workers.py [--workers local:1 local:2] [--hidden 512] [--layers 2] [--experts 8]
       [--tokens 16384] [--turns 2] [--json] [--save]

The pass `quantize(bits=4, method=gptq)` on a Mixtral in memory, with one thread of PyTorch's and without the weight
cache, turn by turn with each of the places: the least time of the turns, and its ratio to no workers. Ray's start is
told apart: a compile waits for it once. Exit status 1 where any weight has other bytes than without workers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MOEC_CACHE_DIR"] = "off"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from reporting import Row, add_output, environment, lines_of, put_out, rows_of_one  # noqa: E402

from moec.huggingface.source import HuggingFaceSource  # noqa: E402
from moec.pipeline.calibration import Calibration  # noqa: E402
from moec.pipeline.calibration_text import CalibrationText  # noqa: E402
from moec.pipeline.passes import Context  # noqa: E402
from moec.pipeline.pipeline import Pipeline  # noqa: E402
from moec.program.program import Program  # noqa: E402
from moec.weights.digest import add_tensor  # noqa: E402
from moec.workers.place import Place  # noqa: E402
from moec.workers.working import working_on  # noqa: E402

PASS = "quantize(bits=4, method=gptq, floor=0)"
VOCABULARY, WINDOW, HERE = 512, 256, "none"


def mixture(hidden: int, layers: int, experts: int) -> Program:
    """A random Mixtral with experts of twice the hidden size."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    heads = hidden // 64
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, num_local_experts=experts, num_experts_per_tok=2,
    )  # fmt: skip
    return HuggingFaceSource.from_model(MixtralForCausalLM(config).eval()).capture()


def measure(program: Program, place: str, tokens: int) -> tuple[float, float, str]:
    """Seconds that the workers took to start, seconds of the pass, and the hash of what it made."""
    ids = torch.randint(3, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(0))
    context = Context(calibration=Calibration(CalibrationText("ids", tokens, WINDOW), "", ids))
    start = time.perf_counter()
    with working_on(None if place == HERE else Place.parse(place)):
        started = time.perf_counter()
        made, _ = Pipeline.parse(PASS).run(program, context)
        ended = time.perf_counter()
    content = hashlib.sha256()
    for _, weight in sorted(made.weights.items()):
        add_tensor(content, weight.load())
    return started - start, ended - started, content.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", nargs="+", default=["local:1", "local:2"])
    for name, default in (("hidden", 512), ("layers", 2), ("experts", 8), ("tokens", 16384), ("turns", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_output(parser, "workers")
    asked = parser.parse_args()
    program = mixture(asked.hidden, asked.layers, asked.experts)
    found: dict[str, list[tuple[float, float, str]]] = {}
    for _ in range(asked.turns):
        for place in (HERE, *asked.workers):
            found.setdefault(place, []).append(measure(program, place, asked.tokens))
    report = {**environment(), "settings": vars(asked), "pass": PASS, "rows": rows_of(found)}
    put_out("workers", report, lines_of(report["rows"]), asked)
    return int(len({digest for turns in found.values() for *_, digest in turns}) > 1)


def rows_of(found: dict[str, list[tuple[float, float, str]]]) -> list[Row]:
    """Rows of each place: the least seconds of the start and of the pass, its ratio to none's, and the hashes."""
    least = {place: min(seconds for _, seconds, _ in turns) for place, turns in found.items()}
    rows = []
    for place, turns in found.items():
        figures = {
            "start": (round(min(start for start, *_ in turns), 2), "s"),
            "pass": (round(least[place], 2), "s"),
            "pass beside none": (round(least[place] / least[HERE], 3), "x"),
            "sha256": (" ".join(sorted({digest for *_, digest in turns})), ""),
        }
        rows += rows_of_one(place, figures)
    return rows


if __name__ == "__main__":
    sys.exit(main())
