"""Pipelines: order, hooks, and passes that do not do what they say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.export import capture
from moec.pipeline.notation import make_pass
from moec.pipeline.passes import Context, Pass
from moec.pipeline.pipeline import Hook, Pipeline
from moec.program.program import Program


class Relus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(x)) + 1


def make() -> Program:
    return capture(Relus(), {"x": torch.randn(3, 4)}, {"x": ("batch", None)})


@dataclass(frozen=True)
class DropRelu(Pass):
    """Removes relus, and says a number that a test chooses."""

    count: int = 2
    removes: int = 2

    def apply(self, program: Program, context: Context) -> int:
        relus = program.nodes(torch.ops.aten.relu.default)
        for node in relus[: self.removes]:
            node.replace_all_uses_with(node.args[0])
        for node in relus[self.removes :]:
            context.miss(node, "this one stays")
        return self.count


@dataclass(frozen=True)
class AfterDrop(DropRelu):
    after = ("drop-relu",)


@dataclass(frozen=True)
class Breaks(Pass):
    def apply(self, program: Program, context: Context) -> int:
        program.nodes(torch.ops.aten.relu.default)[0].op = "call_method"
        return 1


def test_a_run_leaves_the_original_alone_and_reports() -> None:
    program = make()
    before = program.digest()
    done, (step,) = Pipeline((DropRelu(),)).run(program)
    assert program.digest() == before != done.digest() == step.digest
    assert (step.name, step.contract, step.rewrites, step.misses) == ("drop-relu", "exact", 2, [])
    assert [s.name for s in done.history] == ["drop-relu"] and program.history == []


def test_misses_are_reported_with_their_reason() -> None:
    _, (step,) = Pipeline((DropRelu(1, 1),)).run(make())
    assert [(m["pass_name"], m["reason"]) for m in step.misses] == [("drop-relu", "this one stays")]


@pytest.mark.parametrize(
    "lie", [DropRelu(count=0, removes=1), DropRelu(count=3, removes=0)], ids=["did more", "did less"]
)
@pytest.mark.parametrize("optional", [False, True])
def test_a_pass_that_lies_about_its_count_is_caught(lie: Pass, optional: bool) -> None:
    pipeline = Pipeline((lie,))
    with pytest.raises(MoecError) as caught:
        (pipeline.all_optional() if optional else pipeline).run(make())
    assert caught.value.code == "M701"


def test_a_malformed_program_is_caught() -> None:
    with pytest.raises(MoecError) as caught:
        Pipeline((Breaks(),)).run(make())
    assert caught.value.code == "M702" and "breaks" in caught.value.where


def test_a_named_pass_that_changes_nothing_is_an_error_and_says_why() -> None:
    pipeline = Pipeline((DropRelu(0, 0),))
    with pytest.raises(MoecError) as caught:
        pipeline.run(make())
    assert caught.value.code == "M103" and "this one stays" in caught.value.what
    _, (step,) = pipeline.all_optional().run(make())
    assert step.rewrites == 0


def test_a_pass_that_must_run_after_another() -> None:
    done, _ = Pipeline((DropRelu(1, 1), AfterDrop(1, 1))).run(make())
    assert not done.nodes(torch.ops.aten.relu)
    with pytest.raises(MoecError, match="after-drop must run after drop-relu") as caught:
        Pipeline((AfterDrop(1, 1), DropRelu(1, 1))).run(make())
    assert caught.value.code == "M201"


@dataclass(frozen=True)
class AfterRouters(DropRelu):
    prepared_by = ("find-moe", "fuse-moe")


def test_passes_that_prepare_another_run_before_it_once_and_may_find_nothing() -> None:
    seen: list[tuple[str, int]] = []

    class Watch(Hook):
        def before(self, step: int, item: Pass, program: Program) -> None:
            seen.append((item.name, step))

    done, steps = Pipeline((DropRelu(1, 1), AfterRouters(1, 1))).run(make(), hooks=[Watch()])
    assert (
        [s.name for s in done.history]
        == [s.name.partition("(")[0] for s in steps]
        == ["drop-relu", "find-moe", "fuse-moe", "after-routers"]
    )
    assert seen == [("drop-relu", 0), ("find-moe", 1), ("fuse-moe", 2), ("after-routers", 3)] and [
        s.rewrites for s in steps
    ] == [1, 0, 0, 1]
    again, _ = Pipeline((AfterRouters(0, 0),)).all_optional().run(done)
    assert [s.name for s in again.history[4:]] == ["after-routers"]
    assert str(Pipeline((AfterRouters(1, 1),))) == "after-routers(count=1, removes=1)"


def test_a_pass_that_is_named_must_still_change_something_though_it_prepares_another() -> None:
    with pytest.raises(MoecError, match="find-moe changed nothing"):
        Pipeline((make_pass("find-moe", {}), AfterRouters(1, 1))).run(make())


@dataclass(frozen=True)
class ByCall(DropRelu):
    by_call = True


def test_a_program_knows_that_its_results_depend_on_the_call() -> None:
    done, _ = Pipeline((DropRelu(1, 1),)).run(make())
    assert not done.by_call
    done, _ = Pipeline((ByCall(1, 1),)).run(done)
    assert done.by_call and [s.by_call for s in done.history] == [False, True]


def test_pipelines_add_up() -> None:
    both = Pipeline((DropRelu(1, 1),)) + Pipeline((AfterDrop(0, 0),)).all_optional()
    assert both.optional == {"after-drop"} and [p.name for p in both] == ["drop-relu", "after-drop"]


def test_hooks_see_every_step_and_may_end_it() -> None:
    class Watch(Hook):
        seen: list[tuple[str, int, int]] = []  # noqa: RUF012

        def before(self, step: int, item: Pass, program: Program) -> None:
            self.seen.append((item.name, step, len(program.nodes(torch.ops.aten.relu))))

        def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
            self.seen.append((item.name, step, len(program.nodes(torch.ops.aten.relu))))
            if step == 1:
                raise KeyboardInterrupt

    watch = Watch()
    with pytest.raises(KeyboardInterrupt):
        Pipeline((DropRelu(1, 1), AfterDrop(1, 1), Breaks())).run(make(), hooks=[watch])
    assert watch.seen == [("drop-relu", 0, 2), ("drop-relu", 0, 1), ("after-drop", 1, 1), ("after-drop", 1, 0)]
