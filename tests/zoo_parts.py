"""Rows of the table of docs/models.md for models of an encoder and a decoder, which are two graphs, and for a mixture
that comes with its own code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tests import encoder_decoders, nomic_moe

TOKENS = 24
# rows, sizes of what is read, and tokens that are written of it
SIZES = ((1, 1, 1), (3, 11, 5), (2, 29, 17))
OWN_CODE = {"nomic_moe": "NomicMoeModel"}


def names() -> list[str]:
    """The models of an encoder and a decoder whose rows are in the table, in alphabetical order."""
    return ["bart", "nllb_moe", "seamless", "speech_to_text", "switch", "t5", "whisper"]


def save_own_code(folder: Path) -> str:
    """Write the mixture with its own code; returns its folder."""
    folder.mkdir(parents=True)
    nomic_moe.save(folder)
    return str(folder)


def states_of(engine: Any) -> tuple[str, ...]:
    """The caches of a decoder beside an encoder."""
    sides = {name.split(".")[2] for name in (i.name for i in engine.decoder.inputs) if name.startswith("past_key_")}
    said = {"decoder": "keys and values", "encoder": "those of the encoder"}
    return tuple(text for side, text in said.items() if side in sides)


def reports_of(folder: Path) -> list[Any]:
    """The reports of both graphs."""
    import moec

    return [moec.api.read_report(folder / part) for part in ("encoder", "decoder")]


def trials(folder: Path, engine: Any) -> tuple[float, str]:
    """The largest error of an engine beside eager made anew, padded batches and other sizes included; and whether it
    writes the text that `generate` writes, in words where it does not."""
    import torch

    from moec.execution.parts import respond
    from tests.zoo_table import SEED, eager

    model, worst, generator = eager(folder), 0.0, torch.Generator().manual_seed(SEED)
    model.generation_config.eos_token_id = None  # texts do not end
    for batch, length, written in SIZES:
        given = _inputs(engine, batch, length, generator)
        ids = torch.randint(3, encoder_decoders.VOCAB, (batch, written), generator=generator)
        with torch.inference_mode():
            want = model(**given, decoder_input_ids=ids).logits
        got = engine(**given, decoder_input_ids=ids)["logits"]
        worst = max(worst, float((got - want).abs().max() / want.std(correction=0)))
    given = _inputs(engine, 3, 11, generator)
    want = encoder_decoders.generated(model, given, TOKENS)
    start = torch.full((3, 1), model.config.decoder_start_token_id)  # Whisper's generate gives it back to no one
    got = torch.stack(list(respond(engine, given, start, max_tokens=TOKENS)), 1)
    return (worst, "") if got.equal(want[:, -TOKENS:]) else (math.inf, "another text than generate's")


def _inputs(engine: Any, batch: int, length: int, generator: Any) -> dict[str, Any]:
    """Drawn sounds, or tokens with padding behind all rows but the first."""
    import torch

    first = engine.encoder.inputs[0]
    if first.dtype.is_floating_point:
        sizes = first.resolve({"batch": batch, "sequence": 4 * length})
        return {first.name: torch.randn(sizes, generator=generator)}
    mask = torch.ones((batch, length), dtype=torch.int64)
    for row in range(1, batch):
        mask[row, length - 2 * row :] = 0
    ids = torch.randint(3, encoder_decoders.VOCAB, (batch, length), generator=generator)
    return {first.name: ids, "attention_mask": mask}
