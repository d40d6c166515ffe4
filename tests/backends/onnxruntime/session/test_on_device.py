"""Caches and tensors stay on the device: the numbers on the CPU's provider, what is copied on the stand-in for CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moec.backends.onnxruntime.session import on_device
from moec.backends.onnxruntime.session.continuation import HostContinuation
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.backends.onnxruntime.session.on_device import DeviceBuffers, DeviceContinuation, run_on_device
from moec.program.decoder_signature import IDS, LOGITS, MASK
from moec.targets.target import Target
from tests.backends.onnxruntime.session.there import mark, there
from tests.cuda_stand_in.engines import make

CUDA = "onnxruntime:cuda"
CHUNKS = (4, 1, 3, 1, 1)  # new tokens of each step
VOCABULARY, HIDDEN, LENGTH = 128, 256, sum(CHUNKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose cache is a buffer that its operator appends to."""
    out = tmp_path_factory.mktemp("engines") / "llama"
    make("llama", "fp16", out, layers=1)
    return out


@pytest.fixture(scope="module")
def engine(folder: Path) -> OnnxruntimeEngine:
    return OnnxruntimeEngine(folder, Target("onnxruntime"))


def batch(first: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Two texts, the second with padding on the left."""
    ids, mask = np.arange(first, first + 2 * LENGTH).reshape(2, -1), np.ones((2, LENGTH), np.int64)
    mask[1, :2] = 0
    return ids, mask


def logits(text: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    found, done = [], 0
    for chunk in CHUNKS:
        done += chunk
        found.append(text.step(ids[:, done - chunk : done], mask[:, :done]).copy())
    return np.stack(found, 1).astype(np.float64)


def apart(engine: OnnxruntimeEngine, form: Any) -> list[float]:
    """max |d|/std of a text's logits from those of one call on the whole: of that text, and of another, the mutant."""
    ids, mask = batch()
    want = engine(**{IDS: ids, MASK: mask})[LOGITS].astype(np.float64)[:, np.cumsum(CHUNKS) - 1]
    texts = (logits(form(engine._session, engine.inputs, "text", "cpu"), i, mask) for i in (ids, ids[:, ::-1]))
    return [float(np.abs(found - want).max() / want.std()) for found in texts]


@pytest.fixture(scope="module", params=["mistral", "gpt_oss"])
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxruntimeEngine:
    """A decoder whose layers, all or one of two, look at the last 4 places alone."""
    out = tmp_path_factory.mktemp("engines") / request.param
    make(request.param, "fp16", out, layers=2, sliding_window=4)
    return OnnxruntimeEngine(out, Target("onnxruntime"))


@pytest.mark.parametrize("room", [1, 256])
@pytest.mark.parametrize("form", [DeviceBuffers, DeviceContinuation])
def test_texts_go_past_a_window(
    windowed: OnnxruntimeEngine, form: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "ROOM", room)
    right, other = apart(windowed, form)
    assert right < 2e-2
    assert other > 0.1


@pytest.mark.parametrize("room", [1, 256])
@pytest.mark.parametrize("form", [DeviceBuffers, DeviceContinuation])
def test_steps_give_the_logits_of_the_whole_text(
    engine: OnnxruntimeEngine, form: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "ROOM", room)
    right, other = apart(engine, form)
    assert right < 2e-2
    assert other > 0.1


def test_a_buffer_that_nobody_has_written_is_zero(engine: OnnxruntimeEngine) -> None:
    text = DeviceBuffers(engine._session, engine.inputs, "text", "cpu")
    text.step(*(a[:, :4] for a in batch()))
    assert all(not value.numpy()[:, :, 4:].any() for value in text._past.values())
    assert any(value.numpy()[:, :, :4].any() for value in text._past.values())


def test_tensors_go_in_and_out_by_their_memory(engine: OnnxruntimeEngine) -> None:
    from onnxruntime import OrtValue

    ids, mask = batch()
    want = HostContinuation(engine._session, engine.inputs, "text").step(ids, mask)
    caches = [i for i in engine.inputs if i.name not in (IDS, MASK)]
    empty = {c.name: torch.zeros(c.resolve({"batch": 2, "past_sequence": 0}), dtype=c.dtype) for c in caches}
    given = {IDS: torch.from_numpy(ids), MASK: OrtValue.ortvalue_from_numpy(mask), **empty}
    found = torch.from_dlpack(run_on_device(engine._session, engine.outputs, given, "cpu")[LOGITS])
    assert found.shape == (2, LENGTH, VOCABULARY) and np.abs(found[:, -1].numpy() - want).max() < 2e-2 * want.std()


# ---------------------------------------------------------------------- on the stand-in
def write(folder: str) -> list[str]:
    """A prompt and two tokens; returns the form of the text."""
    engine = OnnxruntimeEngine(Path(folder), Target.parse(CUDA))
    text: Any = engine.continuation()
    ids, mask = batch()
    for part, done in (("first", LENGTH - 2), ("step", LENGTH - 1), ("last", LENGTH)):
        mark(part)
        text.step(ids[:, :done] if part == "first" else ids[:, done - 1 : done], mask[:, :done])
    return [type(text).__name__, *{value.device_name() for value in text._past.values()}]


def give(folder: str) -> list[Any]:
    """A call with everything on the device; returns where the outputs lie, as DLPack says it."""
    from onnxruntime import OrtValue

    engine = OnnxruntimeEngine(Path(folder), Target.parse(CUDA))
    sizes = {"batch": 2, "sequence": 1, "past_sequence": 64}
    shapes = {i.name: (i.resolve(sizes), torch.empty(0, dtype=i.dtype).numpy().dtype) for i in engine.inputs}
    given = {n: OrtValue.ortvalue_from_numpy(np.ones(shape, kind), "cuda", 0) for n, (shape, kind) in shapes.items()}
    mark("call")
    outputs = run_on_device(engine._session, engine.outputs, given)
    mark("after")
    return [list(value.__dlpack_device__()) for value in outputs.values()]


def test_a_step_copies_its_token_and_one_row_of_logits(folder: Path) -> None:
    seen = there(write, str(folder))
    assert seen.result == ["DeviceBuffers", "cuda"]
    row, parts = 2 * VOCABULARY * 2, seen.parts  # two texts, half precision
    for name in ("first", "step", "last"):  # and perhaps a number that a shape hangs on
        assert row <= sum(parts[name].copied("device", "host")) < row + 32
    for name, total in (("step", LENGTH - 1), ("last", LENGTH)):
        assert max(parts[name].copied("host", "device")) <= 8 * 2 * total and not parts[name].allocations_bytes
        moved = sum(parts[name].copied("device", "device"))
        assert moved <= 2 * 2 * HIDDEN  # the rows before the head, and nothing of the cache


def test_what_is_on_the_device_is_not_copied(folder: Path) -> None:
    seen = there(give, str(folder))
    assert all(kind == 2 for kind, _ in seen.result)  # kDLCUDA
    call = seen.parts["call"]
    assert not call.copied("device", "host") and sum(call.copied("host", "device")) < 64
