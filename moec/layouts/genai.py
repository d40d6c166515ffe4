"""`genai_config.json`: what onnxruntime-genai must know to generate text with an engine.

Its runtime pads prompts of a batch on the right and masks what it padded; the engine counts positions from the mask, so
that a text comes out as it does alone. Where the graph appends to its cache, past and present share one buffer, which
the runtime makes for `max_length` tokens; elsewhere keys and values are concatenated. Windows of convolutions and
recurrent states have the names that the runtime looks for, in layers of the type that has such; padding leaves no trace
in them. Left alone, it takes half of what the machine calls threads (its 0.18; half speed where those are cores): the
number that is written says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moec.layouts.facts import OPERATORS, ModelFacts
from moec.program.decoder_signature import (
    GROWING,
    IDS,
    LOGITS,
    MASK,
    POSITIONS,
    RECURRENT,
    cache_inputs,
    fixed_inputs,
    layer_of,
    past_names,
    present_name,
)
from moec.program.program import Input

CONFIG = "genai_config.json"
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


def refusal(inputs: Sequence[Input], facts: ModelFacts) -> str | None:
    """Why onnxruntime-genai cannot run an engine with these inputs; None when it can."""
    caches = {i.name: i.shape for i in cache_inputs(inputs)}
    strange = [i.name for i in inputs if i.name not in (IDS, MASK, POSITIONS, *caches)]
    if not caches:
        return "it has no key-value cache"
    state = next((name for name in caches if layer_of(name)[1] not in (*GROWING, *RECURRENT)), None)
    if state is not None:
        return f"its runtime knows no state like {state}"
    both = {layer_of(name)[0] for name in caches if layer_of(name)[1] in GROWING} & {
        layer_of(i.name)[0] for i in fixed_inputs(inputs)
    }
    if both:
        return (
            f"layer {min(both)} has keys and values and another state, and its runtime gives a layer one or the other"
        )
    if strange:
        return f"its runtime does not feed {', '.join(strange)}"
    for name, shape in caches.items():
        if name.endswith(".key") and caches.get(name.removesuffix("key") + "value") != shape:
            return f"keys and values differ in width ({name}), as in multi-head latent attention"
    return None if facts.context and facts.vocabulary else "the model's config names no context length or vocabulary"


def config(
    inputs: Sequence[Input], outputs: Sequence[str], facts: ModelFacts,
    file: str = "model.onnx", device: str = "cpu", threads: int = 0, shared_cache: bool = False,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of `genai_config.json`: greedy search by default, the model's own sampling settings where a client
    turns sampling on.

    The model's type is the generic `decoder`: the runtime needs to know none of the architectures. `threads` 0 is one
    for each core, which is ONNX Runtime's own default; `settings`: see
    `Backend.client_settings`.
    """
    eos = list(facts.eos)
    pad = facts.pad if facts.pad is not None else next(iter(eos), 0)  # as transformers' generate does
    ends = {"eos_token_id": eos[0] if len(eos) == 1 else eos} if eos else {}
    return {
        "model": {
            "type": "decoder", "vocab_size": facts.vocabulary, "context_length": facts.context,
            **({} if facts.bos is None else {"bos_token_id": facts.bos}), **ends, "pad_token_id": pad,
            "decoder": _decoder(inputs, outputs, facts, file, device, threads, settings or {}),
        },
        "search": {
            "do_sample": False, "num_beams": 1, "max_length": facts.context, "past_present_share_buffer": shared_cache,
            **{k: facts.sampling[k] for k in SAMPLING if k in facts.sampling},
        },
    }  # fmt: skip


def _decoder(
    inputs: Sequence[Input], outputs: Sequence[str], facts: ModelFacts, file: str, device: str, threads: int,
    settings: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    session = {name: value for name, value in settings.items() if "." in name or name == OPERATORS}
    provider = {name: value for name, value in settings.items() if name not in session}
    key, value = (name.replace("0", "%d") for name in past_names(0))
    named = {n: n for n in (IDS, MASK, POSITIONS) if any(i.name == n for i in inputs)}
    return {
        "filename": file,
        "session_options": {
            "intra_op_num_threads": threads,
            **session,
            "provider_options": [{"cuda": provider}] if device == "cuda" else [],
        },
        "hidden_size": facts.hidden,
        "head_size": facts.head_width,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.key_value_heads,
        "num_hidden_layers": facts.layers,
        **_layer_types(inputs, facts.layers),
        "inputs": {**named, "past_key_names": key, "past_value_names": value},
        "outputs": {
            LOGITS: LOGITS if LOGITS in outputs else outputs[0],
            "present_key_names": present_name(key),
            "present_value_names": present_name(value),
        },
    }


def _layer_types(inputs: Sequence[Input], layers: int) -> dict[str, list[str]]:
    """Which layers have a state that does not grow: the runtime makes it for these, zeros at first. Nothing for a model
    of keys and values alone."""
    fixed = {layer_of(i.name)[0] for i in fixed_inputs(inputs)}
    kinds = ["linear_attention" if n in fixed else "full_attention" for n in range(layers)]
    return {"layer_types": kinds} if fixed else {}


def write(
    folder: Path,
    inputs: Sequence[Input],
    outputs: Sequence[Input],
    facts: ModelFacts,
    device: str = "cpu",
    threads: int = 0,
    shared_cache: bool = False,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Put `genai_config.json` beside the engine."""
    names = [o.name for o in outputs]
    content: Mapping[str, Any] = config(
        inputs, names, facts, device=device, threads=threads, shared_cache=shared_cache, settings=settings
    )
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
