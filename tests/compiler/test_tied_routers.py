"""A router with equal rows is named where an engine differs for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec.compiler.tied_routers import explained_by_ties
from moec.errors import MoecError
from moec.frontend.module_source import ModuleSource
from moec.pipeline.pipeline import Pipeline
from tests import zoo
from tests.compiler.test_tied_tokens import Depths
from tests.mixtures import Loop, mixture, source_of

UNEQUAL = MoecError("M101", "the engine differs", "output", "find the cause")


def tied(noise: float = 0.0) -> Any:
    model = mixture(Loop)
    with torch.no_grad():
        row = model.router.weight[0]
        model.router.bias[2] = model.router.bias[0]
        model.router.weight[2] = row + noise * row.std() * torch.randn(row.shape, generator=torch.manual_seed(0))
    return model


def said(model: Any, error: MoecError = UNEQUAL) -> MoecError:
    source = source_of(model)
    program, _ = Pipeline.parse("find-moe, fuse-moe").run(source.capture())
    with pytest.raises(MoecError) as caught, explained_by_ties(program, source):
        raise error
    return caught.value


def test_an_engine_that_takes_the_other_expert_is_explained_and_noise_is_a_way_out(tmp_path: Path) -> None:
    given = {"input_ids": torch.randint(0, 9, (2, 5))}
    how: dict[str, Any] = {"inputs": given, "dynamic": {"input_ids": ("batch", "sequence")}}
    with pytest.raises(MoecError, match=r"rows 0 and 2 of the router router\.weight are equal") as caught:
        moec.compile(tied(), out=tmp_path / "tied", **how)
    assert caught.value.code == "M101" and "tie" in caught.value.what and "noise of 1e-3" in caught.value.fix
    moec.compile(tied(1e-3), out=tmp_path / "engine", **how)


def test_shards_of_one_network_share_a_row_and_are_taken_together(tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        moec.compile(
            zoo.build("llama"), out=tmp_path / "e", tolerance=1e-12,
            pipeline="upcycle(experts=4, top_k=2, granularity=2)",
        )  # fmt: skip
    assert caught.value.code == "M101" and "tie" not in caught.value.what and "noise" not in caught.value.fix


def test_another_error_and_another_router_stay_as_they_are() -> None:
    other = MoecError("M104", "not reached", "experts", "try others")
    assert said(tied(), other) is other and said(mixture(Loop)) is UNEQUAL and said(tied()) is not UNEQUAL


def test_an_explanation_that_fails_leaves_the_error_as_it_is() -> None:
    class Unsampled(ModuleSource):
        def sample(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no sample")

    torch.manual_seed(0)
    found = source_of(Depths(places=False))
    program = found.capture()
    with pytest.raises(MoecError, match="some that are equal"), explained_by_ties(program, found):
        raise UNEQUAL
    found.__class__ = Unsampled
    with pytest.raises(MoecError) as caught, explained_by_ties(program, found):
        raise UNEQUAL
    assert caught.value is UNEQUAL
