"""A decoder with recurrent states on this machine's CPU: moec's engine beside PyTorch, transformers' exporter and
llama.cpp.

usage: python benchmarks/hybrid_decoder_cpu.py [--only OnnxExporter llama.cpp …] [--rounds 4] [--sittings 2]
[--patience 1] [--limit 600] [--json] [--save]

The model has Qwen3-Next's shape with random weights in float32 (`Hybrid` in `decoder_models.py`): three layers of gated
delta net before each of attention, a mixture with a shared expert in each. Texts, rounds, ratios and the check of
everybody's logits are those of `decoder_cpu.py`. llama.cpp gets the same weights by `gguf_of_folder.py`.
"""

from __future__ import annotations

from decoder_cpu import measure, rows_of, table
from decoder_models import HYBRIDS
from decoder_sittings import Benchmark

if __name__ == "__main__":
    Benchmark(
        name="hybrid_decoder_cpu",
        about=__doc__,
        cases=HYBRIDS,
        people=("moec", "moec, own kernel", "eager", "grouped_mm", "OnnxExporter", "llama.cpp"),
        always=("moec", "eager"),
        measure=measure,
        rows_of=rows_of,
        table=table,
    ).run()
