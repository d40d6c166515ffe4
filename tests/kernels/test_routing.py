"""Launching the router's kernels: any leading dimensions, and no tokens."""

from __future__ import annotations

import torch

from moec.dialect import Routing
from moec.kernels import launch
from tests.kernels.conftest import Interpret
from tests.kernels.device.test_route import logits_of


def test_leading_dimensions_and_no_tokens(interpret: Interpret) -> None:
    logits = logits_of(6)
    weights, ids = interpret(launch.route, logits.reshape(2, 3, 12), None, Routing(2))
    flat, flat_ids = interpret(launch.route, logits, None, Routing(2))
    assert torch.equal(weights.reshape(6, 2), flat) and torch.equal(ids.reshape(6, 2), flat_ids)
    assert interpret(launch.route, logits[:0], None, Routing(2))[1].shape == (0, 2)
