"""The first fifteen minutes on a GPU: what is right, what is fast, and what was only supposed.

usage: python benchmarks/first_day.py --results DIR [--bundle DIR …] [--only STAGE …] [--seconds 570] [--go-on] [--json]
       python benchmarks/first_day.py --plan
       python benchmarks/first_day.py --dry --results DIR      # small forms of all stages, without a GPU

Stages run in the order of `--plan`, those first that say the most in a minute, each in a process of its own, which is
ended at its limit: a kernel that hangs or faults costs its stage alone. The first wrong number ends the run, with
status 1 and its name; a slow figure does not. `--go-on` runs the other stages all the same.

Each stage writes `DIR/STAGE.json` as it goes. A run that finds such a file does what is not done in it: DIR can travel
back and forth. A stage is not begun where its limit exceeds what is left of `--seconds`.

`--bundle` names folders that `first_day_pack.py` made: their wheels and archives are unpacked and found first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from first_day_rows import ABSENT, BROKEN, DONE, LATE, WRONG, Rows, read, run

ROOT = Path(__file__).parents[1]
START_SECONDS, MACHINE_SECONDS = 70, 15 * 60  # to start a machine and send the tree; what there is
STATUS = {DONE: 0, WRONG: 1, LATE: 4, BROKEN: 5, ABSENT: 3}
PACKAGES = ("torch", "triton", "transformers", "onnxruntime-gpu", "onnxruntime", "moec")


@dataclass(frozen=True)
class Stage:
    """One part of the day.

    Attributes:
        seconds: its limit, all in all. needs: the bundle without which it cannot run.
        says: what one knows after it.
    """

    name: str
    seconds: int
    needs: str
    says: str


STAGES = (
    Stage("kernels", 130, "kernels", "the Triton kernels are right: dtypes, layouts, packed weights, 0 to 4096 tokens"),
    Stage("accelerate", 60, "kernels", "models with them are right, in a CUDA graph too"),
    Stage("engines", 90, "engines", "ONNX Runtime's engines on CUDA are what they are on the CPU, without TF32"),
    Stage("anchors", 210, "kernels", "how fast the kernels are beside PyTorch's, transformers' and published times"),
    Stage(
        "runtime", 100, "engines", "launches and copies of an engine's step, attention's memory, that of 4-bit weights"
    ),
    Stage("sanitizer", 100, "kernels", "no kernel reads or writes outside of its tensors, or races"),
    Stage("decoder", 75, "kernels", "tokens a second of four layers of Qwen3-30B-A3B"),
)


def plan() -> str:
    """The stages, their limits and what they say, as Markdown."""
    total = sum(stage.seconds for stage in STAGES) + START_SECONDS
    lines = ["| stage | seconds at most | bundle | what it says |", "|---|---|---|---|"]
    lines += [f"| start | {START_SECONDS} | | the machine, the tree, the bundles |"]
    lines += [f"| {s.name} | {s.seconds} | {s.needs} | {s.says} |" for s in STAGES]
    return "\n".join([*lines, f"| all | {total} | | of {MACHINE_SECONDS} |"])


# ---------------------------------------------------------------------- one stage, in a process of its own
def work_of(name: str, options: argparse.Namespace) -> Any:
    """What a stage does; its modules are imported here, after the environment has been set."""
    device, small = "cpu" if options.dry else "cuda", options.dry or options.small
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU; --dry runs without one")
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
    rows.notes |= environment(options.dry)
    state, reason = run(rows, work_of(options.stage, options))
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
    path = options.results / f"{stage.name}.json"
    before = read(path)
    try:
        status = subprocess.run(command, env=environment, timeout=stage.seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        status = STATUS[LATE]
        print(f"{stage.name}: ended at its limit of {stage.seconds} s", flush=True)
    found = read(path)
    if status not in STATUS.values() or found == before:  # it died before it could write how
        Rows(stage.name, options.results, dry=options.dry, small=False).write(
            BROKEN, f"its process ended with {status}"
        )
        return BROKEN
    return str(found["state"])


def day(options: argparse.Namespace) -> int:
    """All stages; returns the exit status: 1 for a wrong number, else that of the worst."""
    end, worst = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory(prefix="first-day-") as work:
        unpack(options.bundle, Path(work))
        moec_in(Path(work))
        for stage in (s for s in STAGES if s.name in options.only):
            if read(options.results / f"{stage.name}.json").get("state") == DONE:
                continue
            if stage.seconds > end - time.monotonic():
                print(f"{stage.name}: not begun, {stage.seconds} s are not left", flush=True)
                continue
            state = start(stage, options, Path(work))
            worst = max(worst, STATUS[state] if worst != 1 else 0)
            if state == WRONG:
                worst = 1
                if not options.go_on:
                    break
    return 1 if worst == 1 else worst


def report(results: Path) -> dict[str, Any]:
    """All stages' files as one report: machine, versions, rows."""
    found = [read(results / f"{stage.name}.json") for stage in STAGES]
    notes = next((f["notes"] for f in found if f), {"machine": {}, "versions": {}})
    states = {f["stage"]: {"state": f["state"], "reason": f["reason"], "cases": len(f["cases"])} for f in found if f}
    rows = [{"stage": f["stage"], **row} for f in found if f for row in f["rows"]]
    return {"machine": notes["machine"], "versions": notes["versions"], "stages": states, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    names = [stage.name for stage in STAGES]
    parser.add_argument("--results", type=Path, help="folder of the stages' files, earlier ones too")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a folder of first_day_pack.py")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=570.0, help="of the whole run, or of a --stage")
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
    if options.stage:
        sys.exit(stage_main(options))
    status = day(options)
    from first_day_report import table

    print(json.dumps(report(options.results)) if options.json else table(report(options.results)))
    sys.exit(status)


if __name__ == "__main__":
    main()
