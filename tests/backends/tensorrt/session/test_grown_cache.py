"""The graph with buffers, asked as the program is: the same signature and numbers, as far as the buffers go."""

from __future__ import annotations

import numpy as np

from moec.backends.onnx.emit import Emitter
from moec.backends.tensorrt.session.grown_cache import grow
from moec.program.decoder_signature import IDS, MASK, PAST, TOTAL
from tests.backends.onnxruntime.blocks import session
from tests.backends.tensorrt.decoder import CAPACITY, graph, ran, text, whole


def test_it_has_the_programs_signature_and_numbers() -> None:
    model = graph(CAPACITY)
    room = grow(model)
    assert room is not None and grow(model) is None
    assert room.holds({PAST: 20, "sequence": 4}) and not room.holds({PAST: 20, "sequence": 5})
    found, meant = session(model), ran(0)
    assert [(i.name, i.shape) for i in found.get_inputs()] == [(i.name, i.shape) for i in meant.get_inputs()]
    assert [o.name for o in found.get_outputs()] == [o.name for o in meant.get_outputs()]
    assert str(next(v for v in model.graph.outputs if v.name == "present.0.key").shape[2]) == TOTAL  # type: ignore[index]
    given, names = text(0, 2, CAPACITY, padding=2), [o.name for o in found.get_outputs()]
    caches = {i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32) for i in found.get_inputs()[2:]}
    logits = []
    for start, stop in ((0, 7), (7, 8), (8, CAPACITY)):
        feeds = {IDS: given[IDS][:, start:stop], MASK: given[MASK][:, :stop], **caches}
        out = dict(zip(names, found.run(names, feeds), strict=True))
        caches = {name: out[name.replace("past_key_values", "present")] for name in caches}
        assert all(value.shape[2] == stop for value in caches.values())
        logits.append(out["logits"])
    shown = given[MASK].astype(bool)
    assert np.abs(np.concatenate(logits, 1) - whole(given))[shown].max() < 1e-4


def test_what_reads_free_places_is_found_out() -> None:
    """A graph whose attention does not stop where the text does."""
    model = graph(CAPACITY)
    node = next(n for n in model.graph if n.op_type == "Less" and str(n.name).startswith("cache"))
    node.replace_input_with(1, Emitter(model.graph, node).constant([CAPACITY]))
    grow(model)
    given, changed = text(0, 1, 6), session(model)
    empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in changed.get_inputs()[2:]}
    (got,) = changed.run(["logits"], {**given, **empty})
    assert np.abs(got - whole(given)).max() > 1e-2
