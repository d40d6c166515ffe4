"""How to compile: every setting of a compilation, declared once.

The command line, `moec.compile`, TOML files and the manifest follow from the fields here. Imports nothing slow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from moec.compiler.setting import (
    Choice,
    File,
    Folder,
    Name,
    Names,
    PassList,
    Real,
    Setting,
    Size,
    Switch,
    TargetText,
    Whole,
    WorkersText,
    setting,
    settings_of,
)
from moec.errors import MoecError
from moec.pipeline.calibration_text import CalibrationText
from moec.proof.exam import Exam
from moec.registry import did_you_mean
from moec.targets.target import Target
from moec.workers.place import Place

if TYPE_CHECKING:
    from moec.pipeline.pipeline import Pipeline

Verify = Literal["auto", "full", "streamed"]

_A_TEXT = "(UTF-8, or token ids in .npy, .npz, .safetensors)"


@dataclass(frozen=True)
class Options:
    """How to compile. What a field is given is read and checked: a target may be its text, a pipeline too.

    Attributes:
        target: where the engine is to run.
        pipeline: passes that the user named; the target's own follow them.
        optimize_for: `latency` (few tokens a call) or `throughput` (many).
        verify: `full` compares with the untouched model in memory; `streamed` with the captured graph, one weight in
            memory at a time, for models that do not fit; `auto` decides by size.
        tolerance: bound of max|d|/std(reference); the dtype's default when None. Given, it is the budget of approximate
            passes, too.
        seed: for everything random.
        layout: of the engine folder, see `moec.layouts`; what suits the model when None.
        build: False leaves the part that needs the target's own runtime to `moec build`; the proof is then its
            stand-in's.
        save_hf, hf_format: folder of a checkpoint to write after the named passes, and the form of its weights that are
            packed, see `moec.huggingface.saving.save`.
        save_gguf, gguf_floats: the same as a file for llama.cpp, and the form of its matrices that are not quantized,
            see `moec.huggingface.gguf.write`.
        calibration, calibration_tokens: a text for the passes that need data, or several with names, and how much of
            it, see `calibration_text`.
        text, tokens, window, max_kl, max_perplexity_ratio: a text to judge the engine on, with the error budget, see
            `exam`. One that is set stands in the place of the approximate passes' default budget. Without a text,
            `max_kl` is for the model's own, see `moec.proof.own_text`.
        inputs: `name=dims:dtype` texts that the source is opened with.
        cache: whether a decoder is opened with its cache of keys and values.
        leave_out: what of the model the engine is to be without, see `moec.frontend.account.LeaveOut`.
        part: of a model that is compiled in parts (`Source.parts`), the one to compile alone; all of them when None.
        resume: take up captures and quantized weights that earlier compiles kept, see `moec.files.kept`, and keep them.
        max_ram: bytes that the compile may hold, see `moec.compiler.memory_limit`.
        workers: who does the pieces of quantization, see `moec.workers`; this process when None. They change no byte.

    Raises:
        MoecError: M201 for a value that a setting does not take, M202 for unknown passes and layouts.
    """

    target: Target = setting(
        TargetText(),
        "onnxruntime",
        "Runtime, device and options, e.g. onnxruntime:cuda,precision=fp16.",
        metavar="TARGET",
    )
    pipeline: Pipeline = setting(
        PassList(),
        "",
        'Passes before the target\'s own, e.g. "upcycle(experts=8, top_k=2)". Repeatable.',
        flag="--pass",
        key="pass",
        metavar="PASSES",
    )
    optimize_for: str = setting(Choice(("latency", "throughput")), "latency", "Few tokens a call, or many.")
    verify: Verify = setting(Choice(get_args(Verify)), "auto", "How the untouched model is run for the proof.")
    tolerance: float | None = setting(Real(), None, "Allowed max|d|/std(reference).", shown="the precision's own")
    seed: int = setting(Whole(0), 0, "For everything random.")
    layout: str | None = setting(
        Choice(("plain", "genai", "triton", "kserve"), "M202"),
        None,
        "For which clients.",
        shown="genai for decoders, else plain",
    )
    build: bool = setting(
        Switch(),
        True,
        "Do, or leave to `moec build` on the machine that has them, the part that needs the target's runtime or GPU.",
    )
    save_hf: Path | None = setting(Folder(), None, "Also write the changed model as a checkpoint.", recorded=False)
    hf_format: str = setting(
        Choice(("compressed-tensors", "gptq", "modelopt")),
        "compressed-tensors",
        "In --save-hf: the form of quantized weights.",
        recorded=False,
    )
    save_gguf: Path | None = setting(
        File(), None, "Also write the changed model as a GGUF file, for llama.cpp.", recorded=False, metavar="FILE"
    )
    gguf_floats: str = setting(
        Choice(("f16", "bf16", "f32")),
        "f16",
        "In --save-gguf: the form of matrices that are not quantized.",
        recorded=False,
    )
    calibration: str | None = setting(
        Name(), None, f"A text for the passes that need data {_A_TEXT}, or name=FILE,name=FILE.", metavar="FILE"
    )
    calibration_tokens: int | None = setting(
        Whole(0), None, "Tokens of --calibration to use at most, 0 for all.", shown=CalibrationText.tokens
    )
    text: str | None = setting(Name(), None, f"Judge the engine on this text {_A_TEXT}.", metavar="FILE")
    tokens: int | None = setting(Whole(0), None, "Tokens of --text to use at most, 0 for all.", shown=Exam.tokens)
    window: int | None = setting(Whole(2), None, "Tokens of --text that the model sees at a time.", shown=Exam.window)
    max_kl: float | None = setting(
        Real(),
        None,
        "Allowed mean KL divergence to the untouched model, nats a token, on --text or on the model's own text.",
    )
    max_perplexity_ratio: float | None = setting(
        Real(above=True), None, "On --text: allowed perplexity, as a multiple of the untouched model's."
    )
    inputs: tuple[str, ...] = setting(
        Names(),
        (),
        "An input of file.py:callable or a folder, e.g. ids=batch,sequence:int64<1000, or its value: grid=[[1,4,6]].",
        flag="--input",
        metavar="NAME=DIMS:DTYPE",
    )
    cache: bool = setting(Switch(), True, "A decoder's keys and values as inputs and outputs.")
    leave_out: tuple[str, ...] = setting(
        Names(),
        (),
        "Inputs, tensors or files of the model that the engine is to be without, e.g. 'pixel_values*'. Repeatable.",
        metavar="NAME",
    )
    part: str | None = setting(
        Choice(("encoder", "decoder", "vision", "embedding")),
        None,
        "One part alone: of an encoder-decoder that writes text, or of a model of text and images (with `decoder`).",
        shown="all parts",
    )
    resume: bool = setting(
        Switch(),
        True,
        "Take up what earlier compiles kept (captures, quantized weights), killed ones too; or make all of it anew.",
        recorded=False,
    )
    max_ram: int | None = setting(
        Size(),
        None,
        "Memory that the compile may hold, e.g. 16GiB: its own, without pages of mapped files.",
        shown="what the proof needs, in half of the machine's or the container's",
        recorded=False,
        metavar="SIZE",
    )
    workers: Place | None = setting(
        WorkersText(),
        None,
        "Who quantizes: local:N processes here, or a Ray cluster, ray://HOST:PORT; the same bytes. Needs moec[ray].",
        shown="this process",
        recorded=False,
        metavar="WHERE",
    )

    def __post_init__(self) -> None:
        for name, declared in SETTINGS.items():
            self._set(name, declared.read(getattr(self, name)))
        exam, calibration = self.exam, self.calibration_text
        if exam:  # the defaults of today, so that a manifest means the same to a later moec
            self._set("tokens", exam.tokens)
            self._set("window", exam.window)
        if calibration:
            self._set("calibration_tokens", calibration.tokens)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def exam(self) -> Exam | None:
        """The text to judge the engine on; None without one. Raises M201 for what says nothing without a text: all but
        `max_kl`, which then is for the model's own text."""
        asked = {name: getattr(self, name) for name in EXAM if name != "text"}
        return Exam.of(self.text, **asked)

    @property
    def calibration_text(self) -> CalibrationText | None:
        """The text for the passes that need data; None without one. Raises M201 for a number without a text."""
        return CalibrationText.of(self.calibration, self.calibration_tokens)

    # ------------------------------------------------------------------ plain data
    @classmethod
    def of(cls, given: Mapping[str, Any], where: str = "") -> Options:
        """From settings by name, as `to_plain` writes them or as a user gives them to `moec.compile`.

        Raises:
            MoecError: M201 for an unknown name, with the nearest one, and for a value that the setting does not take;
                `where` says which file it stands in.
        """
        return cls(**read_settings(given, where))

    def to_plain(self) -> dict[str, Any]:
        """Every setting that the manifest keeps, as JSON's types; `of` reads them back."""
        return {name: s.kind.write(getattr(self, name)) for name, s in SETTINGS.items() if s.recorded}


SETTINGS: dict[str, Setting] = settings_of(Options)
EXAM = tuple(field.name for field in dataclasses.fields(Exam))


def read_settings(given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values of some settings, checked; see `Options.of`."""
    unknown = next((name for name in given if name not in SETTINGS), None)
    if unknown is not None:
        raise MoecError(
            "M201", f"there is no setting {unknown!r}", where or "settings", did_you_mean(unknown, list(SETTINGS))
        )
    return {name: SETTINGS[name].read(value, f"{where}: {name}" if where else "") for name, value in given.items()}
