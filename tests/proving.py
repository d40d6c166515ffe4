"""The proof of an engine that no backend built."""

from __future__ import annotations

import torch

from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.program.program import Program
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.decided import DecidedTokens
from moec.proof.checks.sizes import SizesRun
from moec.proof.decided_tokens import Decided
from moec.proof.subject import Subject
from moec.proof.verification import Verification, prove


def verify(
    source: Source,
    engine: Engine,
    program: Program,
    asked: float | None = None,
    precision: torch.dtype = torch.float32,
    seed: int = 0,
) -> Verification:
    """Every check on an engine of `program`, which is also the captured one; for the CPU that runs it."""
    place = {"target": "onnxruntime", "ran_on": "onnxruntime:cpu"}
    return prove(Subject(source, program, program, precision, asked=asked, seed=seed, **place), engine)


def sizes(proof: Verification) -> SizesRun:
    found = proof.find(SizesRun)
    assert found is not None
    return found


def decided(proof: Verification) -> Decided | None:
    found = proof.find(DecidedTokens)
    return found.decided if found else None


def cache(proof: Verification) -> CacheConsistency:
    found = proof.find(CacheConsistency)
    assert found is not None
    return found
