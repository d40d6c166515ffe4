"""Steps as one CUDA graph each: the numbers on the CPU's provider, launches on the stand-in for CUDA's libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnxruntime.backend import Onnxruntime
from moec.backends.onnxruntime.session import engine as engine_module
from moec.backends.onnxruntime.session import on_device
from moec.backends.onnxruntime.session.cuda_graph import GraphBuffers, GraphSession, require_fixed_shapes
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.errors import MoecError
from moec.program.decoder_signature import IDS, LOGITS, MASK
from moec.targets.target import Target
from tests.backends.onnxruntime.session.test_on_device import CHUNKS, LENGTH, VOCABULARY, batch, logits
from tests.backends.onnxruntime.session.there import array, mark, save_graph, there
from tests.cuda_stand_in.engines import make

CUDA = "onnxruntime:cuda,graph=true"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with experts, whose cache is a buffer that its operator appends to."""
    out = tmp_path_factory.mktemp("engines") / "mixtral"
    make("mixtral", "fp16", out, layers=1)
    return out


@pytest.mark.parametrize("room", [1, 256])
def test_steps_give_the_logits_of_the_whole_text(folder: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "ROOM", room)
    engine = OnnxruntimeEngine(folder, Target("onnxruntime"))
    session, (ids, mask) = GraphSession(engine._session), batch()
    want = engine(**{IDS: ids, MASK: mask})[LOGITS].astype(np.float64)[:, np.cumsum(CHUNKS) - 1]
    apart, used = [], set()
    for given in (ids, ids[:, ::-1], ids):  # the last goes on with what the first has left
        text = GraphBuffers(session, engine.inputs, "text", "cpu")
        apart.append(float(np.abs(logits(text, given, mask) - want).max() / want.std()))
        used |= {id(buffer) for buffer in text._past.values()}
        del text
    assert max(apart[0], apart[2]) < 2e-2 < 0.1 < apart[1]
    assert len(used) == 2 and sum(map(len, session.left.values())) == (2 if room == 1 else 1), "keys and values, once"


def test_what_a_text_has_left_is_gone(folder: Path) -> None:
    """A text that overflowed leaves what no zero of a mask takes away."""
    engine = OnnxruntimeEngine(folder, Target("onnxruntime"))
    session, (ids, mask) = GraphSession(engine._session), batch()
    first = GraphBuffers(session, engine.inputs, "text", "cpu")
    want = logits(first, ids, mask)
    for buffer in first._past.values():
        buffer.update_inplace(np.full(buffer.shape(), np.nan, np.float16))
    left = {id(buffer) for buffer in first._past.values()}
    del first
    text = GraphBuffers(session, engine.inputs, "text", "cpu")
    text.step(ids[:, :4], mask[:, :4])
    assert {id(buffer) for buffer in text._past.values()} == left
    assert all(not value.numpy()[:, :, 4:].any() for value in text._past.values())  # NaN is true
    assert any(value.numpy()[:, :, :4].any() for value in text._past.values())
    del text
    assert np.array_equal(logits(GraphBuffers(session, engine.inputs, "text", "cpu"), ids, mask), want)


def test_a_manifest_that_asks_for_graphs_is_not_enough(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine_module.open_session
    monkeypatch.setattr(engine_module, "open_session", lambda path, *a, **more: real(path, Target("onnxruntime")))
    assert isinstance(OnnxruntimeEngine(folder, Target.parse(CUDA))._session, GraphSession)
    x = array("x", 2)
    with pytest.raises(MoecError, match="a step cannot be a CUDA graph") as caught:
        OnnxruntimeEngine(save_graph(tmp_path, ir.node("Neg", [x])), Target.parse(CUDA))
    assert caught.value.code == "M208"


def write(folder: str) -> list[Any]:
    """Two texts one after the other, and a call; what the second text's step gives is read."""
    engine = OnnxruntimeEngine(Path(folder), Target.parse(CUDA))
    ids, mask = batch()
    for number in range(2):
        text: Any = engine.continuation()
        for done in range(LENGTH - 3, LENGTH + 1):
            mark(f"{number} {done}")
            new = ids[:, :done] if done == LENGTH - 3 else ids[:, done - 1 : done]
            found = text.step(new, mask[:, :done])
        del text
    mark("call")
    engine.run({i.name: _ones(i) for i in engine.inputs})
    return [list(found.shape)]


def _ones(spec: Any) -> Any:
    import torch

    return torch.ones(spec.resolve({"batch": 1, "sequence": 1, "past_sequence": 4}), dtype=spec.dtype)


def test_a_step_is_one_launch(folder: Path) -> None:
    seen = there(write, str(folder))
    assert seen.result == [[2, VOCABULARY]]
    first, second = ([seen.parts[f"{n} {done}"] for done in range(LENGTH - 3, LENGTH + 1)] for n in range(2))
    assert all(part.faults == [] and part.refused == [] for part in seen.parts.values())
    assert first[0].graphs == second[0].graphs == seen.parts["call"].graphs == [] and second[0].launches > 10
    assert first[1].launches > 10 and first[1].graphs, "the first is captured"
    for part in (*first[2:], *second[1:]):
        assert len(part.graphs) == 1 and part.graphs[0] > 10 and part.launches == 0
        assert sorted(map(len, (part.copied("host", "device"), part.copied("device", "host")))) == [1, 2]


def test_what_has_no_fixed_shapes_is_refused() -> None:
    with pytest.raises(MoecError, match="CUDA graph") as caught:
        require_fixed_shapes({COMPACT}, CUDA)
    assert caught.value.code == "M208"
    refused = [str(r) for r in Onnxruntime().options(Target.parse("onnxruntime:graph=true"))]
    assert len(refused) == 1 and "only CUDA has graphs" in refused[0]
    assert Onnxruntime().options(Target.parse(CUDA)) == []
