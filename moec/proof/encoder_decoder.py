"""Prove that an encoder and a decoder together say what the untouched model says, in one go and in many calls.

Each part is proven alone before, at many sizes; what is left to show is that they fit each other: that the decoder
reads the states and the mask that the encoder gives, and that neither of its caches makes a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from moec.execution.encoder_decoder import DECODER_SEQUENCE, EncoderDecoderEngine
from moec.execution.engine import Engine
from moec.execution.parts import PartsEngine, PartsText
from moec.frontend.source import Source
from moec.program.decoder_signature import LOGITS, SEQUENCE
from moec.program.encoder_decoder import DECODER_IDS
from moec.program.signature import Sample, converted
from moec.proof.cache_consistency import WRITTEN, Consistency, Way, apart, moves
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.outputs import Outputs
from moec.proof.compare import compare
from moec.proof.digits import at_most
from moec.proof.evidence import why_not
from moec.proof.joint import Joint, called, written
from moec.proof.sizes import verification_sizes
from moec.proof.verification import Verification

TEXT = {"batch": 3, SEQUENCE: 9, DECODER_SEQUENCE: 12}  # texts of the encoder of different lengths, padded
WAYS = {"chunks": (5, 4, 3), "prompt, then token by token": (7, *[1] * 5), "token by token": (1,) * 12}


def prove_encoder_decoder(joint: Joint, engine: EncoderDecoderEngine) -> Verification:
    """The proof of two parts together."""
    source, seed = joint.source, joint.seed
    reference = source.reference()
    samples = list(_samples(source, engine, reference, seed))
    outputs = Outputs(compare(reference, engine, samples, joint.tolerance), joint.approximate)
    text = source.sample(TEXT, seed + 1)
    found = Consistency(joint.bound(outputs), tuple(_ways(engine, engine if outputs.approximate else reference, text)))
    failed, peer = found.failed, _peer(joint) if found.failed else None
    if peer is not None and outputs.approximate:  # what else differs passes made so, and their programs do so, too
        failed = _moved(joint, reference, found, engine, text)
    if peer is not None:  # the model itself may say something else when a text is cut
        whole = peer if outputs.approximate else reference
        ways = (_beside(w, found, engine, whole, peer, text) if w in failed else w for w in found.ways)
        found = replace(found, ways=tuple(ways))
    return joint.proof(outputs, CacheConsistency(found))


def _peer(joint: Joint) -> PartsEngine | None:
    """What runs the same calls as the engine: the untouched parts, or the programs of parts whose numbers changed."""
    if joint.approximate:
        return joint.programs() if joint.programs else None
    return _untouched(joint)


def _untouched(joint: Joint) -> EncoderDecoderEngine:
    return EncoderDecoderEngine(*(part.reference() for part in joint.source.parts().values()))


def _moved(
    joint: Joint, reference: Engine, found: Consistency, engine: EncoderDecoderEngine, text: Sample
) -> tuple[Way, ...]:
    """The ways that failed in which the untouched model itself says something else, of the same tokens."""
    parts, moved = _untouched(joint), list[Way]()
    for way in found.failed:
        ids, _ = _fed(engine, text, way.name, way.steps)
        own = apart(called(_text(parts, text), ids, way.steps), _whole(reference, text, ids))
        if moves(own, found.tolerance):
            moved.append(way)
    return tuple(moved)


def _samples(source: Source, engine: EncoderDecoderEngine, reference: Engine, seed: int) -> Iterator[Sample]:
    """Inputs of every size of a proof that both parts were made for, and that the model runs."""
    for number, sizes in enumerate(verification_sizes(source.inputs)):
        sample = source.sample(sizes, seed + number)
        if engine.holds(sizes) and why_not(reference, sample) is None:
            yield sample


def _ways(engine: EncoderDecoderEngine, reference: Engine, text: Sample) -> Iterator[Way]:
    """One text in several ways, beside the reference in one go, which is the engine itself after passes that change
    numbers."""
    for name, steps in {**WAYS, WRITTEN: (1,) * TEXT[DECODER_SEQUENCE]}.items():
        ids, got = _fed(engine, text, name, steps)
        yield Way(name, steps, apart(got, _whole(reference, text, ids)))


def _beside(
    way: Way, found: Consistency, engine: EncoderDecoderEngine, whole: Engine, peer: PartsEngine, text: Sample
) -> Way:
    """A way that failed, beside the same calls of a peer: of the untouched parts, or, after passes that change numbers,
    of the parts' own programs. As it was unless these say something else themselves than the model, `whole`, does in
    one go, as experts with a capacity do."""
    ids, got = _fed(engine, text, way.name, way.steps)
    want = called(_text(peer, text), ids, way.steps)
    if at_most(apart(want, _whole(whole, text, ids)), found.tolerance):
        return way
    return Way(f"{way.name}, each call beside the model's", way.steps, apart(got, want))


def _fed(engine: EncoderDecoderEngine, text: Sample, name: str, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The tokens of a way, and the engine's logits of them."""
    ids = text[DECODER_IDS]
    if name == WRITTEN:
        return written(_text(engine, text), ids[:, :1], len(steps))
    return ids, called(_text(engine, text), ids, steps)


def _whole(reference: Engine, text: Sample, ids: Tensor) -> Tensor:
    """Logits of a text in one go, in float64."""
    found: Tensor = reference(**{**converted(reference.inputs, text), DECODER_IDS: ids})[LOGITS]
    return found.double()


def _text(engine: PartsEngine, text: Sample) -> PartsText:
    given = converted(engine.inputs, text)
    return engine.text({i.name: given[i.name] for i in engine.parts[0].inputs})
