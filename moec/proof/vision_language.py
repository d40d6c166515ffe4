"""Prove that an encoder of images, an embedding and a decoder together say what the untouched model says, in one go and
in many calls.

Each part is proven alone before, at many sizes; what is left to show is that they fit each other: that each image's
rows stand in its own places, that the decoder reads them, and that its cache makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from moec.execution.engine import Engine
from moec.execution.vision_language import VisionLanguageEngine
from moec.frontend.source import Source
from moec.program.decoder_signature import IDS, LOGITS, MASK, SEQUENCE
from moec.program.signature import Sample, converted, dynamic_dimensions
from moec.program.vision_language import IMAGES
from moec.proof.cache_consistency import WRITTEN, Consistency, Way, apart
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.outputs import Outputs
from moec.proof.checks.sight import Sight
from moec.proof.compare import Tolerance, compare
from moec.proof.decided_tokens import ComparedTokens
from moec.proof.evidence import why_not
from moec.proof.joint import Joint, called, written
from moec.proof.verification import Verification

# (texts, tokens beside images, images): one of each, more images than texts, a text without an image among others
_SIZES = ((1, 3, 1), (2, 9, 3), (1, 13, 2), (3, 12, 2), (2, 37, 2))
TEXT = {"batch": 2, SEQUENCE: 9, IMAGES: 3}
NEW = 5  # tokens that a text goes on by
WAYS = {"prompt, then token by token": (1,) * NEW, "prompt, then chunks": (3, 2)}


def prove_vision_language(joint: Joint, engine: VisionLanguageEngine) -> Verification:
    """The proof of three parts together."""
    source, seed, own = joint.source, joint.seed, Tolerance.of(joint.precision).deviation
    reference = source.reference()
    seen = list(_samples(source, engine, reference, seed))
    blind = [{n: v for n, v in sample.items() if n in (IDS, MASK)} for sample in map(engine.without_images, seen[:2])]
    samples = [*seen, *blind]
    comparison = compare(reference, engine, samples, joint.tolerance, [_tokens(sample) for sample in samples])
    outputs = Outputs(comparison, joint.approximate)
    judge = engine if outputs.approximate else reference
    ways = tuple(_ways(engine, judge, source.sample(_possible(source, TEXT), seed + 1)))
    sight = Sight(min((_moved(reference, sample) for sample in seen), default=0.0), own)
    return joint.proof(outputs, sight, CacheConsistency(Consistency(joint.bound(outputs), ways)))


def _samples(source: Source, engine: VisionLanguageEngine, reference: Engine, seed: int) -> Iterator[Sample]:
    """Inputs that all parts were made for, and that the model runs."""
    for number, (batch, tokens, images) in enumerate(_SIZES):
        sizes = _possible(source, {"batch": batch, SEQUENCE: tokens, IMAGES: images})
        sample = source.sample(sizes, seed + number)
        if engine.holds({**sizes, SEQUENCE: sample[IDS].shape[1]}) and why_not(reference, sample) is None:
            yield sample


def _tokens(sample: Sample) -> ComparedTokens:
    """The tokens of a text; what stands in padding may see nothing at all."""
    real = sample[MASK].bool()
    return ComparedTokens(real, torch.ones(len(real), dtype=torch.bool), int(real.sum()), torch.zeros_like(real))


def _possible(source: Source, sizes: Mapping[str, int]) -> dict[str, int]:
    """These sizes of dimensions that the model has."""
    names = dynamic_dimensions(source.inputs)
    return {name: size for name, size in sizes.items() if name in names}


def _moved(reference: Engine, sample: Sample) -> float:
    """How far the model's logits change with the images in another order, or, where there is one, with other pixels."""
    other = dict(sample)
    for name, value in sample.items():
        if name not in (IDS, MASK) and value.is_floating_point():
            other[name] = value.flip(0) if len(value) > 1 else -value
    before, after = (reference(**converted(reference.inputs, x))[LOGITS].double() for x in (sample, other))
    return apart(after, before)


def _ways(engine: VisionLanguageEngine, reference: Engine, text: Sample) -> Iterator[Way]:
    """A text that goes on in several ways, beside the reference in one go, which is the engine itself after passes that
    change numbers."""
    images = {name: value for name, value in text.items() if name not in (IDS, MASK)}
    more = engine.without_images({IDS: text[IDS][:, :NEW].flip(1)})[IDS]
    prompt = text[IDS]
    for name, steps in {**WAYS, WRITTEN: (1,) * NEW}.items():
        going, calls = engine.text(converted(engine.vision.inputs, images)), (prompt.shape[1], *steps)
        if name == WRITTEN:
            ids, got = written(going, prompt, len(calls))
        else:
            ids = torch.cat([prompt, more], 1)
            got = called(going, ids, calls)
        whole = reference(**converted(reference.inputs, {**images, IDS: ids, MASK: torch.ones_like(ids)}))
        yield Way(name, calls, apart(got, whole[LOGITS].double()))
