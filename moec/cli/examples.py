"""What `--help` shows below the options: commands that work, and what an exit status means."""

from __future__ import annotations

import shlex
from pathlib import Path

from moec.files.nearby import model_in

# verb -> commands and what each is for
EXAMPLES: dict[str, dict[str, str]] = {
    "compile": {
        "moec compile mixtral/ -o engine/": "an engine for this machine's CPU, proven",
        "moec compile llama/ --config int4 -o small/": "weights of 4 bits, by a preset",
        "moec compile llama/ --config int4 --set quantize.group=32 -o small/": "and one of its options otherwise",
        "moec compile my_model.py:network --input 'x=batch,64:float32' -o net/": "a module of one's own",
        "moec compile mixtral/ -t onnxruntime:cuda,precision=fp16 --require-run -o engine/": "on a GPU, or not at all",
        "moec compile mixtral/ --max-ram 16GiB -o engine/": "in no more memory than this",
        "moec compile mixtral/ --config int4 --workers local:4 -o small/": "by four processes, the same bytes",
        "moec compile mixtral/ --no-resume -o engine/": "nothing that an earlier compile kept",
    },
    "build": {
        "moec build engine/": "on the machine that has the runtime and the GPU",
        "moec build engine/ --model /data/mixtral": "where the model lies elsewhere on that machine",
    },
    "verify": {
        "moec verify engine/ --seed 7": "on other inputs than the compile's",
        "moec verify engine/ --text text.txt --max-kl 0.05 --html page.html": "how good is it on a text?",
        "moec verify engine/ --bisect": "which pass, layer and expert is wrong?",
        "moec verify engine/ --require-run --junit report.xml": "for a pipeline on the engine's own hardware",
    },
    "bench": {
        "moec bench engine/ other/ --eager": "two engines and the untouched model, in turns",
        "moec bench engine/ --size batch=4 --size sequence=512 --runs 5": "at other sizes",
    },
    "run": {
        "moec run engine/ 'Once upon a time' --max-tokens 32": "a decoder continues a text",
        "moec run engine/ --tokens 1,2,3 --temperature 0.8 --seed 1": "token ids, without a tokenizer",
        "moec run engine/ --inputs in.npz --output out.npz": "any engine, once",
    },
    "plan": {
        "moec plan mixtral/": "bytes, FLOPs and memory, from the config alone",
        "moec plan mixtral/ --format bf16,int4 --device h200,rtx4090": "what fits where, and how fast",
        "moec plan mixtral/ --device cpu,cpu-int8 --format fp32,int4": "on this machine, after `moec probe`",
        "moec plan mixtral/ --device h200 --batch 1,8,64 --html plan.html": "a page with plots, and what is advised",
        "moec plan mixtral/ --config int4 --set quantize.group=32": "as a preset packs it, one option otherwise",
        "moec plan mixtral/ --pass 'quantize(bits=4)' -t onnxruntime": "which passes would fire, and where not",
        "moec plan mixtral/ --device h200 --traffic 20rps --price h200=3.5": "replicas, latency, cost a million tokens",
    },
    "routers": {
        "moec routers mixtral/ --text text.txt": "load, dead experts, entropy, a cache's hits",
        "moec routers mixtral/ --text law=law.txt --text code=code.txt": "and how far experts know these domains",
        "moec routers mixtral/ --text text.txt --versus tuned/": "and what fine-tuning moved",
    },
    "probe": {
        "moec probe": "measure, print and keep; then `moec plan MODEL --device cpu`",
        "moec probe --show": "what was measured before",
    },
    "inspect": {
        "moec inspect mixtral/": "blocks, routing, parameters; loads no weights",
        "moec inspect engine/": "how each layer runs, what was proven",
        "moec inspect engine/ --markdown": "the whole report, e.g. for a job's summary",
    },
    "ls": {
        "moec ls": "every pass, target and preset",
        "moec ls passes": "one kind",
        "moec ls engines/": "the engines in a folder, with error, size and age",
    },
    "cp": {
        "moec cp int4 .": "the preset int4 as int4.toml, to be changed",
        "moec cp int8 mine.toml": "under another name",
    },
    "diff": {
        "moec diff engine/ other/": "settings, versions, passes, proof and files that differ",
        "moec diff engine/ other/ --json": "the same for a script",
    },
    "check": {
        "moec check engine/": "are model, texts and files still what the manifest says?",
        "moec check engines/*/moec.json --config mine.toml": "several, with the settings that they should have",
        "moec check engine/ --set seed=3": "and was it compiled with this setting?",
        "moec check engine/ --require-run": "and has it run on what it is for?",
    },
    "attest": {
        "moec attest engine/": "an in-toto statement and a bill of materials beside it",
        "moec attest engine/ --check engine.intoto.json": "hold the files against a statement",
    },
    "explain": {
        "moec explain upcycle": "a pass: what it does, each option, what it changes in a small model",
        "moec explain onnxruntime": "a target: what each option does",
        "moec explain int4": "a preset: what it sets, and what it cost on which model",
        "moec explain M104": "an error: what it means, the way out, an example",
    },
    "tiny": {
        "moec tiny mixtral/ tiny/": "the same architecture, two layers, random weights",
        "moec tiny config.json tiny/ --seed 1": "a config is enough",
    },
    "cache": {
        "moec cache": "where captures and quantized weights are kept, how large",
        "moec cache prune --max-days 30": "forget what was not used for a month",
    },
    "clean": {
        "moec clean engines/ --dry-run": "what killed runs left behind; nothing is removed",
        "moec clean engines/": "remove it",
    },
    "doctor": {
        "moec doctor": "versions, runtimes, devices, and what is missing",
        "moec doctor --json": "the same for a script",
    },
    "completion": {
        'eval "$(moec completion bash)"': "in ~/.bashrc",
        'eval "$(moec completion zsh)"': "in ~/.zshrc",
        "moec completion fish | source": "in ~/.config/fish/config.fish",
    },
}
STATUS = (
    "Exit status: 0 ok, 1 the result is not acceptable, 2 wrong usage or unsupported model, 3 missing runtime or "
    "hardware, 70 a bug of moec."
)
_MODEL = "mixtral/"  # how the examples call a model
_WIDE = 44  # a longer command has its explanation on the next line


def epilogue(verb: str) -> str:
    """Examples and exit status, as click prints them without breaking lines."""
    lines = [line for command, what in EXAMPLES.get(verb, {}).items() for line in _lines(command, what)]
    examples = "\b\nExamples:\n" + "\n".join(lines) if lines else ""
    return "\n\n".join(filter(None, [examples, STATUS]))


def example_of(verb: str, otherwise: str) -> str:
    """Advice for who left out what a verb needs: its first example, with a model that lies here in the place of the
    example's own."""
    first = next(iter(EXAMPLES.get(verb, {})), "")
    if not first:
        return otherwise
    if _MODEL not in first.split():
        return f"write for example {first}; {otherwise}"
    here = model_in(Path())
    if here is None:
        return f"write for example {first}, where {_MODEL} is the folder of a model; {otherwise}"
    found = shlex.quote(f"{here}/" if here.is_dir() else str(here))
    return f"write for example {first.replace(_MODEL, found)}; {otherwise}"


def _lines(command: str, what: str) -> list[str]:
    if len(command) <= _WIDE:
        return [f"  {command:<{_WIDE}}  # {what}"]
    return [f"  {command}", f"  {'':<{_WIDE}}  # {what}"]
