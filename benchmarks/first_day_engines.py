"""First day, stage `engines`: ONNX Runtime's engines on CUDA against the same engines on the CPU.

The engines come in a bundle, as graphs whose weights are drawn anew (`first_day_graphs.py`); the CPU runs the same
graph, which is proven there against the untouched model. Each is called with a prompt, one row of it padded on the
left, and with one token after a cache; then it writes texts, step by step, past a window where the model has one. How
an error is found: `first_day_calls.py`.

Without TF32 float32 must be within 1e-4: TF32 alone costs 3e-4 and more. With it the error is told. Half precision must
be within 0.01. `make_engines` makes the bundle.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from first_day_calls import NEAR, PROMPT, UNIT, Errors, errors, inputs_of, is_decoder, whole, worst, write
from first_day_graphs import Facts, fill, pack, strip, unpack
from first_day_rows import Absent, Rows

from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.execution.engine import Engine
from moec.program.decoder_signature import MASK
from moec.targets.target import Target

MODELS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama", "bert")
FORMS = ("fp32", "fp16", "int4", "int8")
LARGE = "large"  # its weights fill a GPU's memory visibly
WIDE = {"hidden_size": 1024, "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 384}
ALLOWED = {"fp32": 1e-4, "fp16": 0.01}
Open = Callable[[Path, str], Engine]


# ---------------------------------------------------------------------- where they are made
def make_engines(out: Path) -> Path:
    """All engines that the day takes along, as an archive; takes some minutes, most of them in torch.export."""
    from tests.cuda_stand_in.engines import captured

    with tempfile.TemporaryDirectory() as work:
        folders = []
        for name in (*MODELS, LARGE):
            model, changes = ("qwen3_moe", WIDE) if name == LARGE else (name, {})
            for dtype, forms in {torch.float32: ["fp32"], torch.float16: ["fp16", "int4", "int8"]}.items():
                wanted = [form for form in forms if name != LARGE or form == "int4"]
                program = captured(model, dtype, **changes) if wanted else None
                made = (make_engine(program, f"{name}/{form}", form, Path(work)) for form in wanted)
                folders += [folder for folder in made if folder]
        return pack(folders, out)


def make_engine(program: Any, name: str, form: str, work: Path) -> Path | None:
    """One engine, stripped; None where this form is refused, which is said."""
    from tests.cuda_stand_in.engines import lower

    folder = work / name.replace("/", "-")
    try:
        target = lower(program, form, folder)
    except Exception as error:
        print(f"{name} is not made: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    strip(folder, Facts(name, target, expected(folder, target)))
    print(name, file=sys.stderr, flush=True)
    return folder


def expected(folder: Path, target: str) -> dict[str, Any]:
    """What the stand-in counts of a prompt and a step; empty where it cannot be built."""
    from tests.cuda_stand_in.build import Missing
    from tests.cuda_stand_in.observe import observe

    try:
        seen = observe(folder, target=target)
    except Missing:
        return {}
    parts = {"prompt": seen.parts.get("prompt"), "step": seen.step if "step 0" in seen.parts else None}
    return {"error": seen.error} | {name: counts(part) for name, part in parts.items() if part and not seen.error}


def counts(part: Any) -> dict[str, Any]:
    """One part's figures, as plain data."""
    places = {"to device": ("host", "device"), "to host": ("device", "host"), "on device": ("device", "device")}
    copies = {name: part.copied(*ends) for name, ends in places.items()}
    found = {f"copies {name}": len(sizes) for name, sizes in copies.items()}
    found |= {f"bytes {name}": sum(sizes) for name, sizes in copies.items()}
    return {"launches": part.launches, **found, "kernels": dict(part.names()), "held_bytes": part.held_bytes}


# ---------------------------------------------------------------------- where they run
def opened(folder: Path, target: str) -> Engine:
    return OnnxruntimeEngine(folder, Target.parse(target))


def judge(rows: Rows, facts: Facts, folder: Path, device: str, open_engine: Open) -> None:
    """One engine: its CPU session, and those on the device."""
    form = facts.target.removeprefix("onnxruntime:cuda")
    half = "fp16" in form
    host = opened(folder, "onnxruntime:cpu" + form)
    for tf32 in ("", ",tf32=true") if device != "cpu" and not half else ("",):
        engine = open_engine(folder, f"onnxruntime:{device}{form}{tf32}")
        for what, draw in draws(host, engine, half, device):
            if tf32:
                rows.figure(f"{what}, with TF32", worst(draw, half), UNIT)
            else:
                rows.check(what, worst(draw, half), UNIT, ALLOWED["fp16" if half else "fp32"])
        engine.close()
    host.close()


def draws(host: Engine, engine: Engine, half: bool, device: str) -> Iterator[tuple[str, Callable[[int], Errors]]]:
    """What is compared, and how one draw of inputs is."""

    def call(tokens: int, past: int, where: str, seed: int) -> Errors:
        given = inputs_of(host, tokens, past, seed)
        got = engine.run({name: value.to(where) for name, value in given.items()})
        return errors(got, host.run(given), given.get(MASK), tokens, NEAR[half])

    yield "a prompt", partial(call, PROMPT, 0, "cpu")
    if device == "cuda":
        yield "a prompt that is on the device", partial(call, PROMPT, 0, "cuda")
    if is_decoder(host):
        yield "a step", partial(call, 1, PROMPT, "cpu")
        yield "texts", lambda seed: errors(write(engine, seed), whole(host, seed), None, 0, NEAR[half])


def engines(rows: Rows, device: str, small: bool, bundles: list[Path], open_engine: Open = opened) -> None:
    """The stage."""
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        folders = {Facts.read(folder).name: folder for folder in unpack(bundles, Path(work))}
        if not folders:
            raise Absent("no engines were brought along: see first_day_pack.py")
        names = sorted((n for n in folders if not n.startswith(LARGE)), key=lambda n: FORMS.index(n.split("/")[1]))
        for name in rows.todo(names):
            judge(rows, fill(folders[name]), folders[name], device, open_engine)


def runtime(rows: Rows, device: str, small: bool, bundles: list[Path]) -> None:
    """The other stage, see `first_day_runtime.py`."""
    from first_day_runtime import attention, launches, memory

    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        folders = {Facts.read(folder).name: folder for folder in unpack(bundles, Path(work))}
        launches(rows, device, folders)
        attention(rows, device, small)
        memory(rows, device, folders)
