"""A decoder with recurrent states on this machine's CPU: moec's engine beside PyTorch and transformers' exporter.

usage: python benchmarks/hybrid_decoder_cpu.py [--only OnnxExporter llama.cpp …] [--rounds 4] [--sittings 2]
[--patience 1] [--limit 600] [--json] [--save]

The model has Qwen3-Next's shape with random weights in float32 (`Hybrid` in `decoder_contestants.py`): three layers of
gated delta net before each of attention, a mixture with a shared expert in each. Texts, rounds, ratios and the check of
everybody's logits are those of `decoder_cpu.py`. `gguf_of_folder.py` writes no such model yet, so llama.cpp is named as
absent.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from decoder_contestants import CONTESTANTS, HYBRIDS
from decoder_cpu import measure, rows_of, table
from decoder_sittings import compete, publish, read_options
from moe_cpu import environment

PEOPLE = ("moec", "eager", "grouped_mm", "OnnxExporter", "llama.cpp")


def main() -> None:
    options = read_options(__doc__.splitlines()[0], PEOPLE, "moec and eager", HYBRIDS)  # type: ignore[union-attr]
    report: dict[str, Any] = {**environment(), "rows": []}
    meter = partial(measure, rounds=options.rounds, patience=options.patience)
    for name in options.case:
        with tempfile.TemporaryDirectory(prefix="moec-bench-") as temporary:
            folder = Path(temporary) / "model"
            HYBRIDS[name].save(folder)
            wanted = [who for who in CONTESTANTS if who in ("moec", "eager") or who in options.only]
            report["rows"] += rows_of(name, *compete(name, folder, wanted, meter, options.sittings, options.limit))
    publish(report, table(report), "hybrid_decoder_cpu", options)


if __name__ == "__main__":
    main()
