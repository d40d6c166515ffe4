"""What moec writes for other engines: a small model that knows a text by heart, changed by passes, in each form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.huggingface.gguf import spoken
from tests.serving.engines import Serving

PROMPT, TOKENS = spoken.TEXT[:25], 30
# heads of 32 are the narrowest that vLLM's attention takes on a CPU
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
LOOSE = ("--max-kl", "9", "--tolerance", "9")  # what quantizing costs is not asked here
GPTQ = ("--hf-format", "gptq")
UPCYCLE, ALIKE = "upcycle(experts=4, top_k=2)", "quantize(bits=8, group=32)"


@dataclass(frozen=True)
class Form:
    """A model, what passes make of it, and how it is written.

    Attributes:
        title: for the table. kind: `checkpoint`, `gguf` or `engine`. model: its architecture, a key of the zoo.
        passes: as on the command line. options: more of `moec compile`.
        refused: engine -> a part of its own words, where it is known not to take the form.
        only: the engine that it is for, where others need more than is installed for them.
    """

    title: str
    kind: str
    model: str
    passes: str = ""
    options: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    only: str = ""

    def is_for(self, engine: Serving) -> bool:
        """Whether an engine reads such a form."""
        return engine.reads == self.kind and self.only in engine.name and engine.part in self.title

    def write(self, compiled: Callable[..., Any], folder: Path) -> tuple[Path, Path]:
        """Compile into `folder`; the engine's folder, and what other engines read."""
        engine, other = folder / "engine", folder / {"gguf": "model.gguf", "engine": "engine"}.get(self.kind, "hf")
        model = spoken.folder(self.model, folder / "model", **SIZES)
        written = {"checkpoint": ("--save-hf", other), "gguf": ("--save-gguf", other), "engine": ()}[self.kind]
        passes = ("--pass", self.passes) if self.passes else ()
        if self.kind == "checkpoint" and not passes:  # the model's own folder is the checkpoint
            other, written = model, ()
        compiled("compile", model, *passes, *written, *self.options, *LOOSE, "-o", engine)
        return engine, other


EXPERTS = "quantize(bits=4, group=32, attention=16, lm_head=16)"
NO_EXPERTS = (("vLLM, CPU", "No WNA16 MoE backend"),)
NO_BYTES = (("vLLM, CPU", "Failed to find a kernel that can implement the WNA16 linear layer"),)
FORMS = (
    Form("floats, dense", "checkpoint", "llama"),
    Form("floats, upcycled", "checkpoint", "llama", UPCYCLE),
    Form("floats, Mixtral", "checkpoint", "mixtral"),
    Form("floats, Qwen3-MoE", "checkpoint", "qwen3_moe"),
    Form("compressed-tensors, 4 bits, dense", "checkpoint", "llama", "quantize(bits=4, group=32, lm_head=16)"),
    Form("compressed-tensors, 8 bits, dense", "checkpoint", "llama", "quantize(bits=8, group=32, lm_head=16)",
         refused=NO_BYTES),
    Form("compressed-tensors, experts of 4 bits", "checkpoint", "mixtral", EXPERTS, refused=NO_EXPERTS),
    Form("GPTQ, 4 bits, dense", "checkpoint", "llama", "quantize(bits=4, group=32, lm_head=16)", GPTQ, only="vLLM"),
    Form("GPTQ, experts of 4 bits", "checkpoint", "mixtral", EXPERTS, GPTQ, refused=NO_EXPERTS, only="vLLM"),
    Form("GGUF, F16, upcycled", "gguf", "llama", UPCYCLE),
    Form("GGUF, Q8_0, Mixtral", "gguf", "mixtral", ALIKE),
    Form("GGUF, Q4_0, Qwen3-MoE", "gguf", "qwen3_moe", "quantize(bits=4, group=32)"),
    Form("ONNX, Mixtral, 4 bits", "engine", "mixtral", "quantize(bits=4)"),
)  # fmt: skip


def spoil(path: Path) -> None:
    """Make a layer of a checkpoint, or a matrix of a GGUF file, zeros, so that its text is another."""
    if path.is_dir():
        from safetensors.torch import load_file, save_file

        file = next(path.glob("*.safetensors"))
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if "layers.1." in name and tensor.is_floating_point():  # weights, or scales of packed ones
                tensor.zero_()
        save_file(tensors, file, {"format": "pt"})
        return
    import gguf

    data = bytearray(path.read_bytes())
    of = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.attn_output.weight")
    data[of.data_offset : of.data_offset + of.n_bytes] = bytes(of.n_bytes)
    path.write_bytes(data)


def text_of(compiled: Callable[..., str], engine: Path) -> str:
    """moec's own engine's text."""
    answer = compiled("run", engine, PROMPT, "--max-tokens", str(TOKENS), "--json")
    return str(json.loads(answer)["text"])
