"""A second run of the same work is read from the cache, bit for bit; anything else is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.files import kept
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.quantization import fitting, rounding, sequential
from moec.quantization.grid import Grid
from moec.quantization.rounding import quantize_weight
from moec.quantization.sequential import Sequential
from moec.quantization.sequential_kept import KeptRun
from moec.recognition.weight_roles import weight_uses
from moec.weights.lazy import from_tensor
from tests import zoo
from tests.quantization.test_sequential import inputs

GPTQ = Grid(4, 16, True, "gptq")
MIXED = Grid(4, 16, False, "gptq", widths=(2, 4) * 4)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    monkeypatch.setattr(sequential, "WORTH_KEEPING", 0)
    monkeypatch.setattr(rounding, "WORTH_KEEPING", 0)
    return tmp_path / "kept"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """The programs that were run, not recalled."""
    found: list[Program] = []
    real = Sequential._run
    monkeypatch.setattr(Sequential, "_run", lambda job, *given: (found.append(job.program), real(job, *given))[1])
    return found


def job_of(program: Program, grid: Grid = GPTQ, mixed: Grid = MIXED) -> Sequential:
    stacks = [(u, mixed) for u in weight_uses(program) if u.kind == "experts" and u.weight is not None]
    rest = [(u, grid) for u in weight_uses(program) if u.kind == "attention" and u.weight is not None]
    return Sequential(program, [*rest[:1], *stacks[:1]], "label")


def numbers(job: Sequential) -> dict[object, list[torch.Tensor]]:
    return {
        key: [w.load() for part in (made if isinstance(made, tuple) else (made,)) for w in part.parts()]
        for key, made in job.made.items()
    }


def test_gptq_is_done_once_for_one_program_text_and_grid(place: Path, runs: list[Program]) -> None:
    program = Pipeline.parse("find-moe, fuse-moe").run(zoo.captured("mixtral"))[0]
    jobs = [job_of(program), job_of(program)]
    for job in jobs:
        job.run(inputs(program, 20))
    assert len(runs) == 1 and jobs[0].rounded == jobs[1].rounded
    first, second = map(numbers, jobs)
    assert list(first) == list(second) and len(first) == 2
    assert all(torch.equal(a, b) for key in first for a, b in zip(first[key], second[key], strict=True))
    job_of(program).run(inputs(program, 40))
    assert len(runs) == 2, "another text"
    job_of(program, Grid(4, 16, False, "gptq")).run(inputs(program, 20))
    assert len(runs) == 3, "another grid"
    swapped = replace(MIXED, widths=MIXED.widths[::-1])
    job_of(program, mixed=swapped).run(inputs(program, 20))
    assert len(runs) == 4 and str(swapped) == str(MIXED), "other experts have the widths"
    max(place.iterdir(), key=lambda path: path.stat().st_size).unlink()
    job_of(program).run(inputs(program, 20))
    changed = program.clone()
    name = next(n for n in changed.weights if n.endswith("q_proj.weight"))
    changed.weights[name] = from_tensor(changed.weights[name].load() * 1.001, changed.weights[name].origin)
    before = len(runs)
    job_of(changed).run(inputs(program, 20))
    assert len(runs) == before + 1, "other weights under the same names"


def test_a_run_that_does_not_fit_is_done_again(runs: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    program = Pipeline.parse("find-moe, fuse-moe").run(zoo.captured("mixtral"))[0]
    misfit = {0: {"0.packed": torch.zeros(1, 1, dtype=torch.uint8), "0.scale": torch.zeros(1, 1)}}
    for asked in ("whole", "recall"):
        monkeypatch.setattr(KeptRun, asked, lambda *_: (misfit, [["told", 3]]))
    job = job_of(program)
    job.run(inputs(program, 20))
    assert len(runs) == 1 and len(job.made) == 2 and job.rounded == []


class Killed(BaseException):
    """What ends a run in the middle."""


@pytest.mark.parametrize(("kind", "after"), [("keep", 1), ("keep", 2), ("keep_piece", 3)])
def test_a_run_that_was_killed_goes_on(
    kind: str, after: int, place: Path, runs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Pipeline.parse("find-moe, fuse-moe").run(zoo.captured("mixtral"))[0]
    solved = list[int]()
    for name in ("encode_with", "descend"):  # of experts, and of other matrices
        real = getattr(fitting, name)
        monkeypatch.setattr(fitting, name, lambda *a, real=real: (solved.append(1), real(*a))[1])
    keep, steps = getattr(KeptRun, kind), list[str]()

    def killing(run: KeptRun, step: str, *made: Any) -> None:
        keep(run, step, *made)
        steps.append(step)
        if len(steps) == after:
            raise Killed

    monkeypatch.setattr(KeptRun, kind, killing)
    with pytest.raises(Killed):
        job_of(program).run(inputs(program, 20))
    monkeypatch.setattr(KeptRun, kind, keep)
    job, anew, spent = job_of(program), job_of(program), len(solved)
    job.run(inputs(program, 20))
    both = len(solved)
    assert len(list(place.iterdir())) == 3, "the two steps and their head: no expert of a block is kept beside it"
    monkeypatch.setenv(kept.FOLDER, "off")
    anew.run(inputs(program, 20))
    lost = torch.get_num_threads() + 1 if kind == "keep_piece" else 0  # what was under way then
    assert 0 <= both - (len(solved) - both) <= lost and both >= spent > 0, "nothing was solved twice"
    first, second = numbers(job), numbers(anew)
    assert list(first) == list(second)
    assert all(torch.equal(a, b) for key in first for a, b in zip(first[key], second[key], strict=True))


def a_step(at: int) -> dict[int, dict[str, torch.Tensor]]:
    return {at: {"0.packed": torch.full((1000,), at, dtype=torch.uint8)}}


def test_a_run_that_is_larger_than_the_cache_pushes_nothing_out(place: Path) -> None:
    run = KeptRun("a")
    for at in range(2):
        run.keep(f"node_{at}", a_step(at), [["told", at]])
    run.finish(2)
    before, other = sorted(place.iterdir()), KeptRun("b", room=False)
    other.keep("node_0", a_step(0), [])
    other.finish(1)
    assert sorted(place.iterdir()) == before and KeptRun("b").whole() is None
    found = KeptRun("a").whole()
    assert found is not None and sorted(found[0]) == [0, 1] and found[1] == [["told", 0], ["told", 1]]
    assert torch.equal(found[0][1]["0.packed"], a_step(1)[1]["0.packed"])


def test_a_run_of_which_a_step_is_missing_is_not_whole(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = kept.write, list[str]()
    full = lambda key, content: len(written) < 2 and (written.append(key), real(key, content))[1]  # noqa: E731
    monkeypatch.setattr(kept, "write", full)  # the disk is full from the third on
    run = KeptRun("a")
    for at in range(3):
        run.keep(f"node_{at}", a_step(at), [])
    monkeypatch.setattr(kept, "write", real)
    run.finish(3)
    assert KeptRun("a").whole() is None and len(list(place.iterdir())) == 2
    assert KeptRun("a").recall("node_1") is not None and KeptRun("a").recall("node_2") is None


def test_hqq_is_searched_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    searched: list[object] = []
    real = rounding._refined
    monkeypatch.setattr(rounding, "_refined", lambda *a: (searched.append(1), real(*a))[1])
    grids = (Grid(4, 16, False, "hqq"), Grid(4, 16, False, "hqq"), Grid(4, 32, False, "hqq"))
    made = [[w.load() for w in quantize_weight(from_tensor(values, "w"), grid).parts()] for grid in grids]
    assert len(searched) == 2 and all(map(torch.equal, made[0], made[1]))
    quantize_weight(from_tensor(values + 1e-3, "w"), grids[0]).packed.load()
    assert len(searched) == 3
    quantize_weight(from_tensor(values, "w"), Grid(4, 16)).packed.load()
    assert len(list(place.iterdir())) == 3, "rounding to nearest is not worth a file"
