"""Who judges in `proof.py`: each looks at an engine beside its model and refuses it or not.

moec's judge is `moec.verify`, on the engine's folder. The others get the engine loaded, and the untouched model.

transformers' exporter compares nothing after an export (`transformers.exporters` 5.23); what stands here is the check
that its own test suite makes of every ONNX export. optimum's `validate_model_outputs` refuses to be imported beside
transformers 5 (optimum-onnx 0.1 wants transformers below 4.58), so its rule is followed: its default sizes, its values,
`numpy.allclose` with its tolerance. Polygraphy's comparison is its own code where it is installed. Nobody is held to
what an engine says of padding: these rules would call right engines wrong for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from proof_cases import Right
from torch import Tensor

import moec
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.generation import generate, is_decoder
from moec.program.decoder_signature import IDS, MASK, without_padding
from moec.program.signature import converted

Judge = Callable[[Right, Engine], str]  # why an engine is refused; empty where it is not


# ---------------------------------------------------------------------- moec
def moec_says(engine: Path, seed: int = 1) -> str:
    """Why `moec.verify` refuses an engine's folder; empty where it says equal."""
    try:
        proof = moec.verify(engine, seed=seed)
    except MoecError as error:
        return f"{error.code}: {error.what}"
    first = next((check for check in proof.checks if not check.ok), None)
    return f"{first.name}: {first}" if first else "" if proof.ok else "nothing was proven"


def bisection_says(engine: Path) -> str:
    """The first layer, and the experts, that `moec verify --bisect` names; empty where it finds none."""
    try:
        found = moec.api.bisect(engine)
    except MoecError as error:
        return f"{error.code}"
    experts = f" experts {', '.join(map(str, found.experts))}" if found.experts else ""
    return f"{found.layer or found.stage}{experts}" if found.stage else ""


# ---------------------------------------------------------------------- the others
def both(right: Right, engine: Engine, sample: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """What the model and the engine say, without padding; by name, those outputs that both have."""
    want, found = right.reference(**sample), engine(**converted(engine.inputs, sample))
    cut = partial(without_padding, sample=sample, inputs=engine.inputs)
    names = [name for name in want if name in found]
    return {name: (cut(want[name], name=name), cut(found[name], name=name).float()) for name in names}


def transformers_tests(right: Right, engine: Engine) -> str:
    """tests/exporters/test_export.py: the sizes of its models' testers (batch 13, 7 tokens), within 1e-3 (in half
    precision 1.6e-2), up to 5 % of each output's elements may be anything."""
    half = "fp16" in right.case.target
    for name, (want, found) in both(right, engine, right.sample(13, 7, 0, seed=1234)).items():
        limit = 1.6e-2 if half else 1e-3
        wrong = ~torch.isclose(found, want, atol=limit, rtol=limit)
        if float(wrong.float().mean()) >= 0.05:
            return f"{name}: {float(wrong.float().mean()):.0%} of the elements differ"
    return ""


def optimum(right: Right, engine: Engine) -> str:
    """`validate_model_outputs`: its dummy inputs of batch 2, 16 tokens, 16 cached ones, and an absolute tolerance of
    1e-5."""
    sample = dict(right.sample(2, 16, 16, seed=0))
    generator = torch.Generator().manual_seed(0)
    for name, value in sample.items():
        if value.is_floating_point():
            sample[name] = torch.rand(value.shape, generator=generator) * 2 - 1
    for name, (want, found) in both(right, engine, sample).items():
        if not np.allclose(want.numpy(), found.numpy(), atol=1e-5):
            return f"{name}: max diff {float((want - found).abs().max()):.1e}"
    return ""


def polygraphy(right: Right, engine: Engine) -> str:
    """`polygraphy run` with its default comparison (every element within 1e-5, absolute and relative), on three random
    inputs of batch 2, 16 tokens and 8 cached ones without padding."""
    from polygraphy.comparator import CompareFunc, IterationResult
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    for seed in range(3):
        sample = dict(right.sample(2, 16, 8, seed=seed))
        sample[MASK] = torch.ones_like(sample[MASK])
        pairs = both(right, engine, sample)
        sides = [IterationResult({n: pair[k].numpy() for n, pair in pairs.items()}) for k in (0, 1)]
        for name, verdict in CompareFunc.simple()(*sides).items():
            if not verdict:
                return f"{name}: input {seed}"
    return ""


def parity(right: Right, engine: Engine) -> str:
    """Ten prompts of eight tokens, two at a time, continued by 64 greedy tokens: every token the same."""
    if not is_decoder(engine):
        return ""  # it writes no text
    high, generator = right.source.domains[IDS].high, torch.Generator().manual_seed(0)
    for number, prompts in enumerate(torch.randint(3, high, (5, 2, 8), generator=generator)):
        want = right.written.setdefault(number, _text(right.reference, prompts))
        found = _text(engine, prompts)
        if not torch.equal(want, found):
            same = int((want == found).all(0).int().cumprod(0).sum())
            return f"prompts {2 * number} and {2 * number + 1}: the same for {same} of 64 tokens"
    return ""


def _text(engine: Engine, prompts: Tensor) -> Tensor:
    return torch.stack(list(generate(engine, prompts, max_tokens=64)), 1)


JUDGES: dict[str, Judge] = {
    "transformers' exporter tests": transformers_tests,
    "optimum's validation": optimum,
    "Polygraphy, 3 random inputs": polygraphy,
    "64 greedy tokens, 10 prompts": parity,
}
PEOPLE = ["moec", *JUDGES]


def absent() -> dict[str, str]:
    """Who cannot judge here, and why."""
    missing = find_spec("polygraphy") is None
    return {"Polygraphy, 3 random inputs": "pip install polygraphy"} if missing else {}


def judged(right: Right, folder: Path, people: list[str]) -> dict[str, str]:
    """What each of the others says of an engine's folder; an engine that cannot run is refused by all of them."""
    engine, said = moec.load(folder), {}
    try:
        for who in people:
            try:
                said[who] = JUDGES[who](right, engine)
            except Exception as error:
                said[who] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        engine.close()
    return said
