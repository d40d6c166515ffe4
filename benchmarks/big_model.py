"""Memory of compiling a checkpoint that is larger than memory should be asked for: peak anonymous RSS of `moec
compile`.

usage: python benchmarks/big_model.py [--layers 2] [--pass "quantize(bits=4, group=64)"] [--folder DIR] [--json]
[--save]

Writes a synthetic Mixtral checkpoint with the real width of Mixtral-8x7B (hidden 4096, 8 experts of 14336, bfloat16;
two layers are 6.2 GB), compiles it in a child process with streamed verification, and samples the child's anonymous
memory from the kernel. Memory-mapped file pages are not counted: the kernel drops them when it needs the room. Needs
about 20 GB of disk. With `--pass` the passes run before the target's own, as in `moec compile`; what is allowed of a
deviation is then the passes' business, and figures of the two stand beside each other in the saved file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from reporting import PACKAGES, add_output, among_kept, environment, lines_of, put_out, rows_of_one
from safetensors.torch import save_file

COARSE = 2.0  # deviation that is allowed where weights are quantized: random ones are worse than any that were trained
HIDDEN, INTERMEDIATE, EXPERTS, VOCAB = 4096, 14336, 8, 32000


def tensors(layer: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """One layer's weights as Mixtral checkpoints name them."""

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float32) * shape[-1] ** -0.5).bfloat16()

    at = f"model.layers.{layer}."
    for name, rows in (("q_proj", HIDDEN), ("k_proj", HIDDEN // 4), ("v_proj", HIDDEN // 4), ("o_proj", HIDDEN)):
        yield f"{at}self_attn.{name}.weight", random(rows, HIDDEN)
    yield f"{at}block_sparse_moe.gate.weight", random(EXPERTS, HIDDEN)
    for e in range(EXPERTS):
        for name, shape in (
            ("w1", (INTERMEDIATE, HIDDEN)),
            ("w2", (HIDDEN, INTERMEDIATE)),
            ("w3", (INTERMEDIATE, HIDDEN)),
        ):
            yield f"{at}block_sparse_moe.experts.{e}.{name}.weight", random(*shape)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{at}{name}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)


def write_checkpoint(folder: Path, layers: int) -> int:
    """The checkpoint, one shard of at most 1 GB in memory at a time; returns its bytes."""
    from transformers import MixtralConfig

    config = MixtralConfig(num_hidden_layers=layers, dtype="bfloat16", architectures=["MixtralForCausalLM"])
    config.save_pretrained(folder)
    generator, index, shard, shards = torch.Generator().manual_seed(0), {}, {}, 0

    def flush() -> None:
        nonlocal shard, shards
        if shard:
            name = f"model-{shards:05d}.safetensors"
            save_file(shard, folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, name))
            shard, shards = {}, shards + 1

    ends = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
    ends["lm_head.weight"] = (torch.randn(VOCAB, HIDDEN, generator=generator) * HIDDEN**-0.5).bfloat16()
    for name, value in [*ends.items(), *(t for layer in range(layers) for t in tensors(layer, generator))]:
        shard[name] = value
        if sum(t.nbytes for t in shard.values()) > 900 * 2**20:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the largest anonymous resident memory that the kernel reports for a process, in bytes."""
    while process.poll() is None:
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak[0] = max(peak[0], int(line.split()[1]) * 1024)
        except OSError:
            return
        time.sleep(0.02)


def run(folder: Path, layers: int, passes: str) -> list[dict[str, object]]:
    """Compile, and what it took."""
    model, engine = folder / "model", folder / "engine"
    size = (
        write_checkpoint(model, layers)
        if not model.exists()
        else sum(p.stat().st_size for p in model.glob("*.safetensors"))
    )
    start = time.monotonic()
    command = [sys.executable, "-m", "moec", "compile", str(model), "-o", str(engine), "--verify", "streamed", "--json"]
    command += ["--no-resume"]  # what is kept would cost no time and no memory
    command += ["--pass", passes, "--tolerance", str(COARSE)] if passes else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0]
    thread = threading.Thread(target=watch, args=(process, peak))
    thread.start()
    out, _ = process.communicate()
    thread.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    report = json.loads(out)["report"]
    largest = EXPERTS * 2 * INTERMEDIATE * HIDDEN * 4
    figures = {
        "checkpoint": (size, "B"),
        "engine": (sum(a["size_bytes"] for a in report["artefacts"]), "B"),
        "largest tensor": (largest, "B"),
        "peak anonymous RSS": (peak[0], "B"),
        "peak anonymous RSS / largest tensor": (peak[0] / largest, "ratio"),
        "deviation": (
            max(float(o["deviation"]) for o in report["proof"]["checks"]["outputs"]["comparison"]["outputs"]),
            "max|d|/std",
        ),
        "time": (time.monotonic() - start, "s"),
    }
    shutil.rmtree(engine)
    case = f"Mixtral-8x7B width, {layers} layers, bf16 -> {passes or 'fp32'}"
    return rows_of_one(case, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to put checkpoint and engine; a temporary folder by default")
    parser.add_argument("--pass", dest="passes", default="", help="passes before the target's own")
    add_output(parser, "big_model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        rows = run(options.folder or Path(temporary), options.layers, options.passes)
    report = {**environment((*PACKAGES, "onnx-ir")), "rows": among_kept("big_model", rows) if options.save else rows}
    put_out("big_model", report, lines_of(report["rows"]), options)


if __name__ == "__main__":
    main()
