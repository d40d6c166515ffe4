"""The first fifteen minutes on a GPU: what is right, what is fast, and what was only supposed.

usage: python benchmarks/first_day.py --results DIR [--bundle DIR …] [--only STAGE …] [--seconds 590] [--go-on] [--json]
       python benchmarks/first_day.py --plan
       python benchmarks/first_day.py --dry --results DIR      # small forms of all stages, without a GPU

Stages run in the order of `--plan`, those first that say the most in a minute, each in a process of its own, which is
ended at its limit: a kernel that hangs or faults costs its stage alone. The first wrong number ends the run, with
status 1 and its name; a slow figure does not. `--go-on` runs the other stages all the same. Other statuses: 0 all is
done, 3 something was not there, 4 the time was over, 5 a stage broke; the worst counts.

Each stage writes `DIR/STAGE.json` as it goes. A run that finds such a file does what is not done in it: DIR can travel
back and forth; what a dry run wrote counts in dry runs alone. A stage is not begun where its limit exceeds what is left
of `--seconds`.

`--bundle` names folders that `first_day_pack.py` made, `kernels` and `engines`: their wheels and archives are unpacked
and found first. A stage whose bundle is not there waits for the call that brings it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from first_day_plan import CALL_SECONDS, STAGES, Stage, plan
from first_day_rows import ABSENT, BROKEN, DONE, LATE, WRONG, Absent, Rows, read, run

ROOT = Path(__file__).parents[1]
SLOW = 6  # times the limits, for a dry run beside other work
STATUS = {DONE: 0, WRONG: 1, LATE: 4, BROKEN: 5, ABSENT: 3}
PACKAGES = ("torch", "triton", "transformers", "onnxruntime-gpu", "onnxruntime", "moec")


# ---------------------------------------------------------------------- one stage, in a process of its own
def work_of(name: str, options: argparse.Namespace) -> Any:
    """What a stage does; its modules are imported here, after the environment has been set. Raises Absent without a
    GPU."""
    device, small = "cpu" if options.dry else "cuda", options.dry or options.small
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Absent("there is no NVIDIA GPU; --dry runs without one")
    torch.set_num_threads(1 if options.dry else torch.get_num_threads())
    processes = 0 if small else 10
    if name == "kernels":
        from first_day_kernels import kernels

        return lambda rows: kernels(rows, device, small, processes)
    if name == "anchors":
        from first_day_anchors import anchors

        return lambda rows: anchors(rows, device, small, processes)
    if name == "sanitizer":
        from first_day_sanitizer import sanitizer

        return lambda rows: sanitizer(rows, device)
    if name in ("accelerate", "decoder"):
        import first_day_accelerate

        return lambda rows: getattr(first_day_accelerate, name)(rows, device, small)
    import first_day_engines

    return lambda rows: getattr(first_day_engines, name)(rows, device, small, options.bundle)


def stage_main(options: argparse.Namespace) -> int:
    """The whole of a stage's process; returns its status."""
    rows = Rows(options.stage, options.results, 0.9 * options.seconds, dry=options.dry, small=options.small)

    def work(rows: Rows) -> None:
        stage = work_of(options.stage, options)
        rows.notes |= environment(options.dry)
        stage(rows)

    state, reason = run(rows, work)
    print(f"{options.stage}: {state}, {len(rows.done)} cases{': ' + reason if reason else ''}", flush=True)
    return STATUS[state]


def environment(dry: bool) -> dict[str, Any]:
    """The machine and the versions, as a report has them."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    gpu = "none: Triton's interpreter" if dry else torch.cuda.get_device_name()
    return {"machine": {"gpu": gpu, "system": platform.platform()}, "versions": versions}


# ---------------------------------------------------------------------- the run
def unpack(bundles: list[Path], site: Path) -> None:
    """Wheels and archives of the bundles, into one folder."""
    for file in sorted(f for bundle in bundles for f in bundle.iterdir()):
        if file.suffix == ".whl":
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(site)
        elif file.name.endswith(".tar.xz") and file.name != "engines.tar.xz":
            with tarfile.open(file) as archive:
                archive.extractall(site, filter="data")


def moec_in(site: Path) -> None:
    """moec as it is installed: passes and backends lie beside it in the tree."""
    (site / "moec").mkdir(parents=True, exist_ok=True)
    found = [*(ROOT / "moec").iterdir(), ROOT / "passes", ROOT / "backends"]
    for path in (p for p in found if p.name != "__pycache__" and not (site / "moec" / p.name).exists()):
        (site / "moec" / path.name).symlink_to(path)


def start(stage: Stage, options: argparse.Namespace, site: Path) -> str:
    """Run one stage to its end, or to its limit; returns its state."""
    environment = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}", "PYTHONUNBUFFERED": "1"}
    environment |= {"TRITON_INTERPRET": "1"} if options.dry else {}
    command = [sys.executable, __file__, "--stage", stage.name, "--results", str(options.results)]
    command += ["--seconds", str(stage.seconds), *(["--dry"] if options.dry else [])]
    command += [word for bundle in options.bundle for word in ("--bundle", str(bundle))]
    status = limited(command, environment, stage.seconds * (SLOW if options.dry else 1))
    rows = Rows(stage.name, options.results, dry=options.dry, small=False)  # what it has written
    if status is None:
        rows.write(LATE, f"it was ended at its limit of {stage.seconds} s")
    elif status != STATUS.get(read(rows.path).get("state", "")):
        rows.write(BROKEN, f"its process ended with {status}")
    state = str(read(rows.path).get("state"))
    print(f"{stage.name}: {state}", flush=True)
    return state


def limited(command: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """A command's status; None where its time was over, and it was ended with all that it started."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def why_not(stage: Stage, options: argparse.Namespace, left_s: float) -> str | None:
    """Why a stage is not begun; None when it is."""
    if not options.dry and stage.needs not in {bundle.name for bundle in options.bundle}:
        return f"the bundle {stage.needs!r} is not here"
    return f"{stage.seconds} s are not left" if stage.seconds > left_s else None


def day(options: argparse.Namespace) -> int:
    """All stages; returns the exit status: 1 for a wrong number, else that of the worst, 3 where there was none."""
    end, ended = time.monotonic() + options.seconds, list[str]()
    with tempfile.TemporaryDirectory(prefix="first-day-") as work:
        unpack(options.bundle, Path(work))
        moec_in(Path(work))
        for stage in (s for s in STAGES if s.name in options.only):
            if found(stage, options).get("state") == DONE:
                ended.append(DONE)
                continue
            if (reason := why_not(stage, options, end - time.monotonic())) is not None:
                print(f"{stage.name}: not begun, {reason}", flush=True)
                continue
            state = start(stage, options, Path(work))
            ended.append(state)
            if state == WRONG and not options.go_on:
                break
    return STATUS[WRONG] if WRONG in ended else max((STATUS[state] for state in ended), default=STATUS[ABSENT])


def found(stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """A stage's file; nothing where there is none, or one of a dry run where this is none, and the other way round."""
    earlier = read(options.results / f"{stage.name}.json")
    return earlier if earlier.get("setting", {}).get("dry") == options.dry else {}


def report(options: argparse.Namespace) -> dict[str, Any]:
    """All stages' files as one report: machine, versions, rows."""
    files = [file for stage in STAGES if (file := found(stage, options))]
    notes = next((f["notes"] for f in files if f["notes"]), {"machine": {}, "versions": {}})
    states = {f["stage"]: {"state": f["state"], "reason": f["reason"], "cases": len(f["cases"])} for f in files}
    rows = [{"stage": f["stage"], **row} for f in files for row in f["rows"]]
    return {"machine": notes["machine"], "versions": notes["versions"], "stages": states, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    names = [stage.name for stage in STAGES]
    parser.add_argument("--results", type=Path, help="folder of the stages' files, earlier ones too")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a folder of first_day_pack.py")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="of the whole run, or of a --stage")
    parser.add_argument("--dry", action="store_true", help="small forms on the CPU; their times mean nothing")
    parser.add_argument("--go-on", action="store_true", help="run other stages after a wrong number")
    parser.add_argument("--plan", action="store_true", help="print stages and limits, and end")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.add_argument("--stage", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(plan())
        return
    if options.results is None:
        parser.error("--results says where")
    if absent := [str(bundle) for bundle in options.bundle if not bundle.is_dir()]:
        parser.error(f"no such bundle: {', '.join(absent)}; first_day_pack.py makes them")
    needed = {stage.needs for stage in STAGES}
    if strange := [str(bundle) for bundle in options.bundle if bundle.name not in needed]:
        parser.error(f"{', '.join(strange)}: a bundle's folder is called {' or '.join(sorted(needed))}")
    if options.stage:
        sys.exit(stage_main(options))
    status = day(options)
    from first_day_report import table

    print(json.dumps(report(options)) if options.json else table(report(options)))
    sys.exit(status)


if __name__ == "__main__":
    main()
