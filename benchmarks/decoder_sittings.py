"""Contestants in processes of their own, made anew for every sitting: what the benchmarks of decoders share."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from decoder_contestants import CONTESTANTS
from reporting import add_output, environment, put_out, under_machine

PROMPT, SHORT = 512, 64  # tokens of a prompt that is timed, and of one before decoding is

Times = dict[str, dict[str, list[float]]]  # of whom, of what, in seconds
Measured = tuple[Times, dict[str, float]]  # and how far everybody is from eager


def worker(pipe: Any, who: str, folder: Path) -> None:
    """Serve one contestant: (what, ids, tokens to feed) in, (seconds, last logits) out."""
    import torch

    tempfile.tempdir = str(folder.parent)  # what it writes is removed with the model
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        torch.inference_mode(),
    ):
        try:
            prefill, step = CONTESTANTS[who](folder)
            for length in (PROMPT, SHORT):  # what compiles or allocates at the first call belongs to getting ready
                prefill(np.full((1, length), 5))
                step(5)
            pipe.send("")
        except Exception as error:
            pipe.send(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
            )
            return
        while (job := pipe.recv()) is not None:
            ids, tokens = job
            start = time.perf_counter()
            logits = prefill(ids)
            seconds = [time.perf_counter() - start]
            for token in tokens:
                start = time.perf_counter()
                logits = step(token)
                seconds.append(time.perf_counter() - start)
            pipe.send((seconds, np.array(logits, np.float32)))


class Contestant:
    """A process that runs one implementation; `problem` says why it cannot. It has `limit` seconds to get ready."""

    def __init__(self, who: str, folder: Path, limit: float = 600.0) -> None:
        context = multiprocessing.get_context("spawn")
        self.who, (self.pipe, other) = who, context.Pipe()
        self.process = context.Process(target=worker, args=(other, who, folder), daemon=True)
        self.process.start()
        other.close()
        if self.pipe.poll(limit):
            self.problem = self._receive()
        else:
            self.problem = f"not ready after {limit:.0f} s"
            self.process.kill()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            return f"died with exit status {self.process.exitcode}"

    def run(self, ids: Any, tokens: list[int]) -> tuple[list[float], Any]:
        self.pipe.send((ids, tokens))
        answer = self._receive()
        if isinstance(answer, str):
            raise RuntimeError(f"{self.who} {answer}")
        return answer

    def close(self) -> None:
        if not self.problem:
            self.pipe.send(None)
        self.process.join()


@dataclass(frozen=True)
class Benchmark:
    """Who competes on which models, what is measured, and how it is told.

    Attributes:
        name: of the files in `results/`. about: the module's text; `--help` shows its first paragraph.
        cases: what saves a model into a folder, by name.
        people: who competes, in this order. always: those whom `--only` does not leave out.
        unfit: those who do not run a case. measure, rows_of, table: the benchmark's own.
    """

    name: str
    about: str
    cases: Mapping[str, Any]
    people: Sequence[str]
    always: Sequence[str]
    measure: Callable[..., Measured]
    rows_of: Callable[..., list[dict[str, Any]]]
    table: Callable[[dict[str, Any]], list[str]]
    unfit: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def run(self) -> None:
        """Every case that the command line asks for, printed or saved."""
        options = self._options()
        report: dict[str, Any] = {**environment(), "rows": []}
        meter = partial(self.measure, rounds=options.rounds, patience=options.patience)
        for name in options.case:
            able = [who for who in self.people if who not in self.unfit.get(name, ())]
            wanted = [who for who in able if who in (*self.always, *options.only)]
            with tempfile.TemporaryDirectory(prefix="moec-bench-") as temporary:
                folder = Path(temporary) / "model"
                self.cases[name].save(folder)
                found = compete(name, folder, wanted, meter, options.sittings, options.limit)
            report["rows"] += self.rows_of(name, *found)
        put_out(self.name, report, under_machine(report, self.table(report)), options)

    def _options(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.about.split("\n\n")[0])
        cases, others = list(self.cases), [who for who in self.people if who not in self.always]
        parser.add_argument("--case", nargs="+", choices=cases, default=cases)
        parser.add_argument(
            "--only",
            nargs="+",
            choices=list(self.people),
            default=others,
            help=f"contestants besides {', '.join(self.always)}",
        )
        parser.add_argument("--rounds", type=int, default=4, help="in each sitting")
        parser.add_argument("--sittings", type=int, default=2, help="how often all processes are made anew")
        parser.add_argument(
            "--patience",
            type=float,
            default=0.0,
            help="on a shared machine: seconds to wait, before each run, for others to be idle",
        )
        parser.add_argument(
            "--limit", type=float, default=600.0, help="seconds that a contestant may take to get ready"
        )
        add_output(parser, self.name)
        return parser.parse_args()


def compete(
    case: str,
    folder: Path,
    wanted: list[str],
    measure: Callable[[dict[str, Contestant]], Measured],
    sittings: int,
    limit: float,
) -> tuple[Times, dict[str, float], dict[str, str]]:
    """All sittings of one case, every other with processes made in the opposite order: those made first have slower
    memory.

    The very first process of a sitting is never measured, for it has the slowest: else moec, which is always at one
    end, had it every other time.

    Returns:
        Times and errors of those who were always there, and why the others are absent.
    """
    times: Times = {}
    errors: dict[str, float] = {}
    absent: dict[str, str] = {}
    for sitting in range(sittings):
        people: dict[str, Contestant] = {}
        spare = Contestant(wanted[0], folder, limit)
        for who in wanted[::-1] if sitting % 2 else wanted:
            person = Contestant(who, folder, limit) if who not in absent else None
            if person is not None and person.problem:
                absent[who] = person.problem
            elif person is not None:
                people[who] = person
            print(f"{case}: {who} {absent.get(who, 'is ready')}", file=sys.stderr)
        found, wrong = measure(people)
        errors.update({who: max(error, errors.get(who, 0.0)) for who, error in wrong.items()})
        for who, seconds in found.items():
            for what, more in seconds.items():
                times.setdefault(who, {}).setdefault(what, []).extend(more)
        for person in (spare, *people.values()):
            person.close()
    there = [who for who in wanted if who in times and who not in absent]
    return {who: times[who] for who in there}, {who: errors[who] for who in there if who in errors}, absent
