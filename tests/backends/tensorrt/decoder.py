"""A small decoder with windows of 5 tokens, lowered with a cache that grows and with one of 24 places."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from moec import open_source
from moec.backends.onnx.export import to_onnx
from moec.backends.onnx.steps import apply_steps
from moec.backends.tensorrt.graph.export import OPSET, steps_for
from moec.backends.tensorrt.policy import BuildPlan
from moec.program.decoder_signature import IDS, MASK
from moec.program.program import Program
from tests.backends.onnxruntime.blocks import session
from tests.zoo import save

CAPACITY = 24


@cache
def program(name: str = "mistral") -> Program:
    """A captured model of the zoo, its weights read."""
    with TemporaryDirectory() as folder:
        found = open_source(save(name, Path(folder) / name)).capture(torch.float32)
        for weight in found.weights.values():
            weight.load()
        return found


@cache
def _exported() -> ir.Model:
    return to_onnx(program(), OPSET)


def opaque() -> ir.Model:
    """The decoder as it is exported, attention still one node."""
    return _exported().clone()


@cache
def lowered_as(capacity: int) -> tuple[bytes, dict[str, Any]]:
    """The ONNX file of the decoder, and the facts about it."""
    model, plan = opaque(), BuildPlan("tensorrt-rtx", tokens=64, capacity=capacity)
    facts = apply_steps(model, steps_for(plan, program()))
    return ir.to_proto(model).SerializeToString(), facts


def graph(capacity: int) -> ir.Model:
    """A copy of it."""
    from onnx import load_from_string

    return ir.from_proto(load_from_string(lowered_as(capacity)[0]))


@cache
def ran(capacity: int) -> Any:
    """A session of it."""
    return session(graph(capacity))


def text(seed: int, batch: int, length: int, padding: int = 0) -> dict[str, np.ndarray]:
    """Ids and mask of texts, the first with padding on the left."""
    generator = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[0, :padding] = 0
    return {IDS: generator.integers(3, 90, (batch, length)), MASK: mask}


def whole(given: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of texts at once, with a cache that grows and is empty."""
    caches = {i.name: i for i in ran(0).get_inputs() if i.name not in given}
    batch = len(given[IDS])
    empty = {name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32) for name, i in caches.items()}
    found: np.ndarray = ran(0).run(["logits"], {**given, **empty})[0]
    return found
