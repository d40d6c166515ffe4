"""The files that belong beside an engine: config, tokenizer, chat template; and what they say of the model as plain
facts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moec.errors import MoecError, reason_of
from moec.files.inside import leads_outside, require_inside
from moec.huggingface.lengths import config_lengths
from moec.huggingface.reading.config_sizes import built_from
from moec.layouts.facts import ModelFacts, model_name
from moec.program.decoder_signature import cache_inputs, layer_of
from moec.program.program import Input

# copied byte by byte: what a client reads, never weights, pickles or code
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
    "*preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/config.json",
)
SUFFIXES = ("", ".json", ".jsonl", ".txt", ".model", ".jinja", ".tiktoken", ".md")
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


def write_companions(origin: Any, folder: Path) -> None:
    """Put the model's own files into an engine folder: copies where the model's origin is a folder, else its config as
    transformers writes it."""
    path = getattr(origin, "beside", None)
    if path is not None:
        copy_companions(path, folder)
        adapter = getattr(origin, "adapter", None)
        if adapter is not None and adapter.folder != path:  # it may bring a tokenizer or a template of its own
            copy_companions(adapter.folder, folder)
        return
    model = origin.template
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def copy_companions(path: Path, folder: Path, keep: bool = False) -> None:
    """Copy what lies beside a model's weights (tokenizer, templates, configs). With `keep`, what is there stays."""
    found = sorted({f for pattern in FILES for f in path.glob(pattern) if f.is_file() and f.suffix in SUFFIXES})
    for file in (f for f in found if not leads_outside(f, path)):
        target = folder / file.relative_to(path)
        if keep and target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def describe(origin: Any, text: str, inputs: Sequence[Input]) -> ModelFacts:
    """The facts of the model at an origin that the user named `text`.

    Raises:
        MoecError: M204 when its generation config is broken.
    """
    model, path = origin.template, getattr(origin, "path", None)
    generation = getattr(model, "generation_config", None) if path is None else _stored_generation(path)
    with built_from(Path(path or "") / "config.json"):
        return facts_of(model_name(text), model.config, generation, inputs)


def facts_of(name: str, config: Any, generation: Any, inputs: Sequence[Input]) -> ModelFacts:
    """Facts from a model's config, its generation config (or None) and its signature; the cache's sizes are those of
    the signature."""
    text, caches = config.get_text_config(), cache_inputs(inputs)
    first = next((i.shape for i in caches if i.name.endswith(".key")), (0, 0, 0, 0))
    heads = _whole(text, "num_attention_heads")
    layers = max((layer_of(i.name)[0] + 1 for i in caches), default=0)
    return ModelFacts(
        name=name,
        model_type=config.model_type,
        vocabulary=_whole(text, "vocab_size"),
        context=_whole(text, "max_position_embeddings") or _whole(text, "max_target_positions"),
        hidden=_whole(text, "hidden_size"),
        heads=heads,
        layers=layers or _whole(text, "num_hidden_layers"),
        key_value_heads=int(first[1]),
        head_width=int(first[3]),
        bos=_ids(generation, text, "bos_token_id")[0],
        eos=tuple(i for i in _ids(generation, text, "eos_token_id") if i is not None),
        pad=_ids(generation, text, "pad_token_id")[0],
        starts=_starts(generation, config),
        sampling={k: float(v) for k in SAMPLING if isinstance(v := getattr(generation, k, None), int | float)},
        lengths=config_lengths(config),
    )


def _whole(config: Any, name: str) -> int:
    """A number of a config; 0 where there is none, or one for each stage or layer of a model."""
    layers = getattr(vars(config).get("_heterogeneity_spec"), "per_layer_attributes", ())  # which raise when asked for
    value = 0 if name in layers else getattr(config, name, 0)
    return value if isinstance(value, int) else 0


def _stored_generation(path: Path) -> Any:
    from transformers import GenerationConfig

    if not (path / "generation_config.json").is_file():
        return None
    require_inside(path / "generation_config.json", path)
    try:
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # its own validation may raise anything
        reason = reason_of(error, None)
        where = str(path / "generation_config.json")
        raise MoecError(
            "M204",
            f"generation_config.json is not a valid configuration: {reason}",
            where,
            "correct the file, or remove it",
        ) from error


def _starts(generation: Any, config: Any) -> tuple[int, ...]:
    """What transformers begins a decoder's text with beside an encoder: its start, and a first token that is forced, as
    the language of a translation is."""
    if not config.is_encoder_decoder:
        return ()
    names = ("decoder_start_token_id", "forced_bos_token_id")
    found = [_ids(generation, config, name)[0] for name in names]
    return tuple(token for token in found if token is not None) if found[0] is not None else ()


def _ids(generation: Any, config: Any, name: str) -> list[int | None]:
    """The token ids that generation uses under this name: the generation config's, else the model's own; `[None]` where
    there is none."""
    found = next((v for v in (getattr(c, name, None) for c in (generation, config)) if v is not None), None)
    return list(found) if isinstance(found, list | tuple) else [found]
