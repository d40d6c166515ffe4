"""The cache stays with the runtime: the same logits as the engine's ordinary call, step by step, on the host's form and
on the device's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moec
from moec.backends.onnxruntime.session import continuation
from moec.backends.onnxruntime.session.continuation import HostContinuation, SharedContinuation
from moec.backends.onnxruntime.session.on_device import DeviceContinuation
from moec.errors import MoecError
from moec.execution.generation import Continuation, TensorContinuation, pad

CHUNKS = (4, 1, 3, 1, 1)  # new tokens of each step


@pytest.fixture(scope="module")
def engine(mixtral_engine: Path) -> Any:
    return moec.load(mixtral_engine)


FORMS: dict[str, Callable[[Any], Continuation]] = {
    "host": lambda e: HostContinuation(e._session, e.inputs, e.name),
    "shared": lambda e: SharedContinuation(e._session, e.inputs, e.name),
    "device": lambda e: DeviceContinuation(e._session, e.inputs, e.name, "cpu"),
    "tensors": TensorContinuation,
}


def logits(text: Continuation, ids: Tensor, mask: Tensor) -> Tensor:
    found, done = [], 0
    for chunk in CHUNKS:
        done += chunk
        found.append(step(text, ids[:, done - chunk : done], mask[:, :done]))
    return torch.stack(found, dim=1)


def step(text: Continuation, ids: Tensor, mask: Tensor) -> Tensor:
    return torch.from_numpy(text.step(ids.numpy(), mask.numpy()).copy())  # a copy: the next step may write over them


def batch() -> tuple[Tensor, Tensor]:
    ids, mask = pad([[*range(5, 15)], [*range(20, 27)]])
    return ids, mask


@pytest.mark.parametrize("form", FORMS)
def test_steps_give_the_logits_of_the_whole_text(engine: Any, form: str) -> None:
    ids, mask = batch()
    want = engine(input_ids=ids, attention_mask=mask)["logits"]
    ends = torch.tensor(CHUNKS).cumsum(0) - 1
    found = logits(FORMS[form](engine), ids, mask)
    assert found.device.type == "cpu" and found.shape == (2, len(CHUNKS), 96)
    assert (found - want[:, ends]).abs().max() < 1e-4 * want.std()
    other = logits(FORMS[form](engine), ids.flip(1), mask)  # the mutant: another text
    assert (other - want[:, ends]).abs().max() > 0.1 * want.std()


@pytest.mark.parametrize("form", FORMS)
def test_two_texts_do_not_mix(engine: Any, form: str) -> None:
    ids, mask = batch()
    first, second = FORMS[form](engine), FORMS[form](engine)
    alone = logits(FORMS[form](engine), ids, mask)
    step(first, ids[:, :4], mask[:, :4])
    step(second, ids[:, 3:6], mask[:, 3:6])
    assert torch.equal(step(first, ids[:, 4:5], mask[:, :5]), alone[:, 1])


def test_a_buffer_that_is_used_up_is_replaced(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = batch()
    want = logits(FORMS["host"](engine), ids, mask)
    monkeypatch.setattr(continuation, "ROOM", 1)
    text = FORMS["shared"](engine)
    found = logits(text, ids, mask)
    assert (found - want).abs().max() < 1e-4 * want.std()
    for buffer in text._past.values():  # type: ignore[attr-defined]  # the mutant: a cache that was lost
        buffer[:] = 0
    more = torch.tensor([[7], [7]]), torch.cat([mask, mask[:, -1:]], 1)
    right = FORMS["host"](engine)
    step(right, ids, mask)
    assert (step(text, *more) - step(right, *more)).abs().max() > 0.01 * want.std()


def test_the_engine_offers_the_form_of_its_device(engine: Any) -> None:
    assert type(engine.continuation()) is SharedContinuation


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_cache_stays_there(mixtral: Path, tmp_path: Path) -> None:
    moec.compile(str(mixtral), target="onnxruntime:cuda", out=tmp_path / "engine")
    engine: Any = moec.load(tmp_path / "engine")
    text = engine.continuation()
    ids, mask = batch()
    want = engine(input_ids=ids, attention_mask=mask)["logits"][:, -1]
    assert (logits(text, ids, mask)[:, -1] - want).abs().max() < 1e-3 * want.std()
    assert {value.device_name() for value in text._past.values()} == {"cuda"}


@pytest.mark.parametrize("form", ["host", "tensors"])
def test_values_that_the_runtime_refuses(engine: Any, form: str) -> None:
    with pytest.raises(MoecError) as error:
        FORMS[form](engine).step(np.array([[96]]), np.ones((1, 1), np.int64))
    assert error.value.code in ("M211", "M214") and ("96" in error.value.what or "bounds" in error.value.what)
