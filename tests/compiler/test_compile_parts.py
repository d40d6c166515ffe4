"""What the compiles of an engine's parts have to do with each other."""

from __future__ import annotations

import pytest

from moec.compiler.compile_parts import _Idle
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.report.report import Report


def test_a_pass_may_change_nothing_in_a_part_if_it_does_in_another() -> None:
    """An embedding has nothing to be upcycled, and a decoder has."""
    options = Options.of({"pipeline": "upcycle(experts=4), quantize(bits=8)"})

    def compiled(asked: Options, idle: tuple[str, ...]) -> str:
        for item in map(str, asked.pipeline):
            if item.startswith(idle):
                raise MoecError("M103", "it changed nothing", item, "leave it out")
        return str(asked.pipeline)

    passes = _Idle(options.pipeline)
    assert passes.without(options, lambda asked: compiled(asked, ("upcycle",))) == "quantize(bits=8)"  # type: ignore[arg-type, comparison-overlap, return-value]
    with pytest.raises(MoecError) as error:
        passes.require()
    assert error.value.code == "M103" and error.value.where == "upcycle(experts=4)"
    passes.without(options, lambda asked: compiled(asked, ("quantize",)))  # type: ignore[arg-type, return-value]
    passes.require()
    with pytest.raises(MoecError, match="another fault"):
        passes.without(options, _faulty)


def _faulty(_: Options) -> Report:
    raise MoecError("M207", "another fault", "quantize(bits=8)", "mend it")
