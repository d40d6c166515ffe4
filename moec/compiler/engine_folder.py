"""The folder of a compiled engine: its report, its options, and its source and program, computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from moec.compiler.fitted import as_fitted, fitted_elsewhere
from moec.compiler.new_model import as_new_model, making
from moec.compiler.open import open_source, source_kind
from moec.compiler.options import Options
from moec.compiler.proving import choose_reference, opened, ran_on
from moec.compiler.recorded_bounds import Recorded
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.files.inside import stays_inside
from moec.files.regular import file_hash
from moec.frontend.beside import CODE, held_to
from moec.frontend.in_memory import is_in_memory
from moec.frontend.source import Opening, Source
from moec.layouts import model_folder
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.hooks import RecordHook
from moec.pipeline.passes import Context
from moec.program.program import Program
from moec.proof.checks.recorded import RecordedCheck
from moec.proof.subject import Reference, Subject
from moec.proof.verification import Verification, all_checks
from moec.report.artefacts import MANIFEST, check_artefacts, size_bytes
from moec.report.environment import environment
from moec.report.report import Report
from moec.targets.backend import Backend, find_backend
from moec.targets.engine_file import EngineFile
from moec.text.corpus import calibration_hash, read_calibration


class EngineFolder:
    """An engine's folder, and what its manifest says about how the engine was compiled."""

    def __init__(self, folder: Path, opening: Mapping[str, Any]) -> None:
        self.folder, self.report = folder, Report.read(folder / MANIFEST)
        check_artefacts(self.report.artefacts, folder)
        self.options = options_of(self.report)
        self.backend: Backend = find_backend(self.options.target, runtime=False, written=True)
        self.target = self.backend.shown(model_folder(folder), self.options.target)
        self._opening = opening

    def source(self, model: str | None = None) -> Source:
        """The model, opened again, from another place if one is given. Raises M106 when its files are not those that
        the engine was made from."""
        source = open_recorded(self.report, self._opening, model)
        source.account()
        return self._as_compiled(source)

    def own(self, model: Any = None) -> Source:
        """The model that the engine was made from, opened as at the compile: that of the manifest, or one in memory
        that the user gives. Raises M106 where the latter's weights are others, M204 where nobody has it."""
        if not is_in_memory(self.report.source_hashes) or model is None or isinstance(model, str | Path):
            return self.source()
        return self.given(model)

    def given(self, model: Any = None) -> Source:
        """The model that the engine was made from, where the user has it: a path, or the model itself; where the
        manifest says without one. Raises M106 where it is another."""
        if model is None or isinstance(model, str | Path):
            return self.source(None if model is None else str(model))
        opening = {} if isinstance(model, Source) else {**self.report.opening, **self._opening}
        source = open_source(model, **opening)
        require_same_source(self.report, source)
        return self._as_compiled(source)

    def _as_compiled(self, source: Source) -> Source:
        """What the compile began with: the model, or a new one that passes make of it. Raises M106 where other models
        that it was made of have changed."""
        if not making(self.options.pipeline)[0].passes:
            return source  # its text is not read for it
        made, _ = as_new_model(source, self.options.pipeline, self._calibration(source), self.options.seed)
        if made.models_hash and made.models_hash != self.report.text_hashes.get("models"):
            fix = "put them back, or compile anew"
            raise MoecError("M106", "a model that was merged has changed since", str(self.options.pipeline), fix)
        return made

    def _calibration(self, source: Source) -> Calibration | None:
        text = self.options.calibration_text
        require_same_texts(self.report, self.options, ["calibration"])
        return read_calibration(text, source, self.options.seed) if text else None

    def remake(self, source: Source, hooks: tuple[RecordHook, ...] = ()) -> tuple[Program, Program]:
        """The captured program, and the one that the engine was built from; what was fitted to a text is fitted by as
        many threads as then."""
        calibration = self._calibration(source)
        with as_fitted(self.report.environment, self.options.pipeline):
            captured = source.capture(self.backend.precision(self.target))
            context = Context(seed=self.options.seed, calibration=calibration, max_kl=self.options.max_kl)
            program, _ = making(self.options.pipeline)[1].run(captured, context, hooks)
            program, _ = self.backend.legalize(self.target).run(program, context, hooks)
        return captured, program

    def opened(self) -> AbstractContextManager[Engine]:
        """The engine, loaded; where its hardware is missing, on the backend's stand-in (`Backend.stand_in`)."""
        return opened(self.backend, self.target, self.folder, self.options.build, self.prepacked)

    @property
    def prepacked(self) -> Reference:
        """How the engine is loaded, see `opened`: as at the compile."""
        return "streamed" if self.report.proof.reference == "streamed" else "full"

    def reference(self, source: Source, captured: Program) -> Reference:
        """What a later proof compares with: the untouched model, or its graph where the compile did so and this machine
        would, too. The manifest's word alone does not spare the model."""
        return self.prepacked if self.prepacked == "full" else choose_reference(source, captured, "auto")

    def subject(self, source: Source, captured: Program, program: Program) -> Subject:
        """What the engine has to equal, with moec's own bounds, or recorded ones that ask for more; looser ones are
        named in `Subject.looser`."""
        found = Subject.of(source, captured, program, self.backend, self.target)
        bounds = Recorded(self.options, self.target, found)
        return replace(
            found,
            reference=self.reference(source, captured),
            engine_bytes=self.size_bytes,
            file=EngineFile(self.backend, self.target, model_folder(self.folder), self.options.optimize_for),
            fitted_elsewhere=fitted_elsewhere(self.report.environment, environment(), self.options.pipeline),
            exam=bounds.exam,
            exam_decides=False,
            tighter=bounds.tighter,
            looser=bounds.looser,
            target=str(self.options.target),
            ran_on=ran_on(self.backend, self.options.target, self.options.build),
        )

    def lost_checks(self, proof: Verification) -> list[RecordedCheck]:
        """The checks that the compile made and this proof could not, their packages not being here: what a manifest
        says of them proves nothing."""
        made = {check.name for check in proof.checks} | {check.name for check in all_checks()}
        return [c.lost() for c in self.report.proof.checks if isinstance(c, RecordedCheck) and c.name not in made]

    def require_same_text(self) -> None:
        """Raise M106 when the text that the compile was judged on is not the same any more."""
        require_same_texts(self.report, self.options, ["text"])

    @property
    def size_bytes(self) -> int:
        """Of the engine's files."""
        return size_bytes(self.report.artefacts)


def options_of(report: Report) -> Options:
    """The settings that an engine was compiled with. Raises M201 where an edit of the manifest made one
    invalid."""
    return Options.of(report.settings, MANIFEST)


def open_recorded(report: Report, opening: Mapping[str, Any], model: str | None = None) -> Source:
    """The model that a manifest names, opened again; or `model`, which has to be the same.

    A manifest may come from anywhere: what it names is opened only when its files are those that the engine was made
    from, and code is run only when the user named it himself, or said so with `trust_remote_code`.

    Args:
        report: the manifest's. opening: arguments of `open_source`, what the user gave. model: where it lies here.

    Raises:
        MoecError: M106 when its files are not the same, M209 for code that would have to be run.
    """
    text = model or report.source
    if model is None:
        _require_on_disk(report)
    kind = source_kind(text, Opening())
    runs = kind.runs(text) if kind else ""
    if runs and model is None and not opening.get("trust_remote_code"):
        fix = "read it, then pass --trust-remote-code"
        raise MoecError("M209", f"the manifest names the model, and {runs}", text, fix)
    files = kind.files(text) if kind else ()
    _require_same_files(report, {file.name: file for file in files} | _code_of(report, text, files))
    with held_to(report.source_hashes):
        source = open_source(text, **{**opening, **report.opening})
    require_same_source(report, source)
    return source


def compare_recorded(report: Report, opening: Mapping[str, Any]) -> None:
    """Hold the model that a manifest names against its hashes. No code of the model is run, whatever the user allows:
    where some would be, when it was opened, the files that the manifest names are hashed, and nothing is opened.

    Raises:
        MoecError: M106 when its files are not the same, M204 where there is no such model.
    """
    _require_on_disk(report)
    kind = source_kind(report.source, Opening())
    if kind is None or not (kind.runs(report.source) or any(name.endswith(".py") for name in report.source_hashes)):
        open_recorded(report, {**opening, "trust_remote_code": False})
        return
    recorded = _recorded(report, kind, report.source)
    wrong = sorted(n for n, digest in report.source_hashes.items() if n not in recorded or _hash(recorded[n]) != digest)
    if wrong:
        _refuse_changed(report, wrong)


def _hash(file: Path) -> str:
    """Of a file; of one that cannot be read, none."""
    try:
        return file_hash(file)
    except OSError:
        return ""


def _require_on_disk(report: Report) -> None:
    if is_in_memory(report.source_hashes):
        what = f"{report.source} was made in memory, and nothing on disk is it, so it cannot be opened again"
        fix = "in Python: moec.verify(engine, model), or moec.api.bisect(engine, model)"
        raise MoecError("M204", what, MANIFEST, fix)


def _recorded(report: Report, kind: type[Source], text: str) -> dict[str, Path]:
    """The files that an engine was made from, by their names in the manifest."""
    home = kind.home(text)
    own = {file.name: file for file in kind.files(text)}
    return {name: own.get(name, home / name) for name in report.source_hashes if stays_inside(name)}


def _code_of(report: Report, text: str, files: Sequence[Path]) -> dict[str, Path]:
    """The code in a model's folder, or beside its file, that the engine was made with, by its name in the manifest:
    compared before any of it is run; what is imported and is not of it, `held_to` refuses. Raises M106 where one is
    gone."""
    folder = Path(text) if not files or Path(text).is_dir() else files[0].parent
    if not folder.is_dir() or not all(file.is_file() for file in files):  # a hub id, or who opens it says what is wrong
        return {}
    names = [name for name in report.source_hashes if name.endswith(CODE) and stays_inside(name)]
    gone = [name for name in names if not (folder / name).exists()]
    if gone:
        _refuse_changed(report, gone)
    return {name: folder / name for name in names}


def _require_same_files(report: Report, files: Mapping[str, Path]) -> None:
    """Raise M106 when a file that would be opened is not the one that an engine was made from."""
    for name, file in files.items():
        try:
            same = report.source_hashes.get(name) == file_hash(file)
        except OSError:
            continue  # who opens it says what is wrong
        if not same:
            _refuse_changed(report, [name])


def _refuse_changed(report: Report, names: Sequence[str]) -> NoReturn:
    what = f"the source has changed since: {', '.join(names[:3])}"
    memory = is_in_memory(report.source_hashes)
    fix = "give the model as it was then, or compile it anew" if memory else "compile it anew: moec compile MODEL"
    raise MoecError("M106", what, report.source, fix)


def require_same_source(report: Report, source: Source) -> None:
    """Raise M106 when the files of a model are not those that an engine was made from."""
    files = {*source.hashes, *report.source_hashes}
    changed = sorted(name for name in files if source.hashes.get(name) != report.source_hashes.get(name))
    if changed:
        _refuse_changed(report, changed)


def require_same_texts(report: Report, options: Options, settings: Sequence[str] = ("text", "calibration")) -> None:
    """Raise M106 when a text that an engine was judged or calibrated on is not the same any more. A text is not
    checked where the compile had none, or where the options name another one."""
    purposes = {"text": "judged", "calibration": "calibrated"}
    for name in settings:
        file = getattr(options, name)
        if file is not None and file == report.settings.get(name):
            require_same_text(CalibrationText(file), report.text_hashes.get(name, ""), purposes[name])


def require_same_text(text: CalibrationText, digest: str, purpose: str) -> None:
    """Raise M106 when a text is not the one that an engine was judged on, or calibrated on."""
    if not all(Path(file).is_file() for file in text.files) or calibration_hash(text) != digest:
        raise MoecError(
            "M106",
            f"the text that the engine was {purpose} on has changed, or is missing",
            text.file,
            "put it back, name another with --text FILE, or compile anew",
        )
