"""Engines that write a greedy text from what moec wrote, each where it is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
ZEN_FLAGS = ("AuthenticAMD", "avx512")  # of processors that zentorch is for, as vLLM asks
VLLM = Path(os.environ.get("MOEC_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
ZEN = VLLM.parents[1] / "zen"
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
PATIENCE = 600  # seconds; vLLM starts in twenty where a machine is quiet


class Refused(Exception):
    """An engine does not take a form; the text is its own last line."""


@dataclass(frozen=True)
class Serving:
    """An engine that is not ours.

    Attributes:
        name: for people. reads: the form's kind that it takes: `checkpoint`, `gguf`, or moec's engine folder, `engine`.
        installed: its version, None where it is not here. install: how it comes here.
        write: from the path, a prompt and a number of tokens to the text, the prompt left out; raises `Refused`.
        part: of a form's title, where it is there for such forms alone.
    """

    name: str
    reads: str
    installed: Callable[[], str | None]
    install: str
    write: Callable[[Path, str, int], str]
    part: str = ""


def _package(name: str) -> Callable[[], str | None]:
    def installed() -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return installed


def _vllm_version() -> str | None:
    if not VLLM.exists():
        return None
    asked = "from importlib.metadata import version as v; print(v('vllm-cpu'))"
    return subprocess.run([VLLM, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def _zentorch_version() -> str | None:
    own, processor = _vllm_version(), Path("/proc/cpuinfo")
    packages = sorted(ZEN.glob("zentorch-*.dist-info"))
    if not own or not packages or not processor.exists():
        return None
    said = processor.read_text("utf-8")
    fits = all(flag in said for flag in ZEN_FLAGS)
    return f"{own}, zentorch {packages[-1].name.split('-')[1].removesuffix('.dist')}" if fits else None


def _by_vllm(folder: Path, prompt: str, tokens: int, packages: Path | None = None) -> str:
    packed = "quantization_config" in json.loads((folder / "config.json").read_text())
    dtype = "bfloat16" if packed else "float32"  # its kernels for codes of 4 bits have no float32
    script = [VLLM, Path(__file__).with_name("vllm_text.py"), folder, dtype, prompt, str(tokens)]
    settings = {**os.environ, **SETTINGS, **({"PYTHONPATH": str(packages)} if packages else {})}
    found = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE, env=settings)
    if found.returncode:
        said = found.stdout + found.stderr
        reasons = re.findall(r"\w+Error: (.+)", said)  # the first is the root cause
        raise Refused(reasons[0].partition(" Reasons:")[0] if reasons else said.strip()[-200:])
    answer = next(line for line in found.stdout.splitlines() if line.startswith('{"text": '))
    return str(json.loads(answer)["text"])


def _by_llama_cpp(file: Path, prompt: str, tokens: int) -> str:
    import llama_cpp

    engine = llama_cpp.Llama(str(file), n_ctx=128, n_threads=1, type_k=0, type_v=0, verbose=False)
    return str(engine(prompt, max_tokens=tokens, temperature=0)["choices"][0]["text"])


def _by_transformers(folder: Path, prompt: str, tokens: int) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    speaks = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    given = speaks(prompt, return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=tokens, do_sample=False)[0]
    return str(speaks.decode(ids[given["input_ids"].shape[1] :], skip_special_tokens=True))


def _by_genai(folder: Path, prompt: str, tokens: int) -> str:
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    speaks, settings = genai.Tokenizer(model), genai.GeneratorParams(model)
    start = speaks.encode(prompt)
    settings.set_search_options(max_length=len(start) + tokens, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(start)
    while not generator.is_done():
        generator.generate_next_token()
    return str(speaks.decode(generator.get_sequence(0)[len(start) :]))


SERVING = (
    Serving("vLLM, CPU", "checkpoint", _vllm_version, "`make serving` puts it into .venv-vllm", _by_vllm),
    Serving("vLLM, CPU, with zentorch", "checkpoint", _zentorch_version, "`make serving` does it on AMD with AVX-512",
            partial(_by_vllm, packages=ZEN), "experts of 4 bits"),
    Serving("transformers", "checkpoint", _package("transformers"), "it comes with moec", _by_transformers),
    Serving("llama.cpp", "gguf", _package("llama-cpp-python"), "pip install llama-cpp-python", _by_llama_cpp),
    Serving("onnxruntime-genai", "engine", _package("onnxruntime-genai"), "`make demo` installs it", _by_genai),
)  # fmt: skip
