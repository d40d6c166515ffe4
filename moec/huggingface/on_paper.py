"""A config that moec would not compile can still be counted: as the class of transformers that it comes nearest to, or
by the formula of a usual decoder. What was done is said with the counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moec.errors import MoecError
from moec.files.regular import read_bytes
from moec.huggingface.reading.bare import bare, described
from moec.huggingface.reading.folder import read_config, resolve
from moec.huggingface.reading.model_class import CONFIG, declared
from moec.huggingface.reading.plausible import check_plausible
from moec.huggingface.reading.said import by_own_names, defaults, nested, text_key, unread
from moec.huggingface.reading.stored import stored
from moec.planning.shape import Shape
from moec.planning.written import written_shape

_AUTO = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModel")


def on_paper(text: str) -> tuple[Any, tuple[str, ...]] | Shape:
    """The model of a config without its weights, and notes on what its counts rest on; or its shape, where no class of
    transformers has it.

    Raises:
        MoecError: see `moec.huggingface.reading.bare.bare_model`; M204 where nothing says the sizes.
    """
    try:
        found = described(text)
    except MoecError as error:
        if error.code not in ("M206", "M209", "M215"):
            raise
        return _otherwise(text, error)
    raw = _raw(text)
    check_plausible(raw, text)
    _require_read(raw, *found, text)
    model = bare(*found, text)
    return model, (*_source(raw), *stored(raw), *defaults(raw, model))


def _otherwise(text: str, error: MoecError) -> tuple[Any, tuple[str, ...]] | Shape:
    raw = _raw(text)
    check_plausible(raw, text)
    name = _nearest(raw)
    if name:
        model, notes = _as_class(raw, name, text)
        why = f"{error.what}; counted as transformers' own {name}"
        return model, (*_source(raw), why, *stored(raw), *notes)
    inner = raw.get("text_config")
    sizes = inner if isinstance(inner, dict) and "hidden_size" not in raw else raw
    named = raw.get("model_type")
    reason = error.what if named else ""
    if sizes is not raw:
        reason += "; its text part alone"
    try:
        shape = written_shape(sizes, text, reason)
        return replace(shape, notes=(*shape.notes, *stored(raw)))
    except MoecError as lacking:
        if not named:
            raise
        hint, asked, _ = error.fix.partition("? ")
        fix = f"{hint}? Otherwise {lacking.fix}" if asked else lacking.fix
        raise MoecError("M206", f"{error.what}, and by hand: {lacking.what}", text, fix) from error


def _raw(text: str) -> dict[str, Any]:
    """The config as plain data, its entries checked already."""
    path = Path(text)
    if not path.is_file():
        return read_config(resolve(text))
    raw: dict[str, Any] = json.loads(read_bytes(path))
    return raw


def _nearest(raw: dict[str, Any]) -> str:
    """The class of transformers that a config names, else the one that it has for the model's type; empty for none."""
    import transformers

    name = next(iter(declared(raw)), "")
    if name and getattr(getattr(transformers, name, None), "config_class", None) is not None:
        return name
    kind = str(raw.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        return ""
    config_class = transformers.CONFIG_MAPPING[kind]
    for auto in _AUTO:
        mapping = getattr(transformers, auto)._model_mapping
        if config_class in mapping:
            found = mapping[config_class]
            return str((found[0] if isinstance(found, tuple) else found).__name__)
    return ""


def _as_class(raw: dict[str, Any], name: str, text: str) -> tuple[Any, tuple[str, ...]]:
    """A bare model of a class, from a config that says another type or names another class, and what was moved in it
    so that the class reads it.

    Raises:
        MoecError: M204 for sizes that it does not read.
    """
    import transformers

    kind = getattr(transformers, name).config_class.model_type
    changed = {key: value for key, value in raw.items() if key not in ("auto_map", "quantization_config")}
    changed |= {"model_type": kind, "architectures": [name]}
    found = _described(changed, text)
    notes: tuple[str, ...] = ()
    if unread(changed, found[1]):
        changed, key = nested(changed, found[1]), text_key(found[1])
        found = _described(changed, text)
        parts = [k for k, value in vars(found[1]).items() if hasattr(value, "to_dict") and k not in changed]
        given = f"; {', '.join(parts)}: transformers' defaults" if parts else ""
        notes = (f"{name} reads the sizes from {key}, so they were put there{given}",)
    key = text_key(found[1])
    own, lost = by_own_names(changed.get(key, changed), found[1].get_text_config())
    changed = {**changed, key: own} if key in changed else own
    found = _described(changed, text)
    _require_read(changed, *found, text)
    notes += (f"{name} has no entry called {', '.join(lost)}: what it says may not be counted",) if lost else ()
    model = bare(*found, text)
    return model, (*notes, *defaults(changed, model))


def _described(config: dict[str, Any], text: str) -> tuple[Any, Any]:
    """Class and config of a changed config; errors name the user's."""
    with TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(config))
        try:
            return described(folder)
        except MoecError as error:
            raise MoecError(error.code, error.what, text, error.fix) from error


def _require_read(raw: dict[str, Any], model_class: Any, config: Any, text: str) -> None:
    """Raises M204 for sizes that stand where the class does not look, which would be counted with its defaults."""
    lost = unread(raw, config)
    if lost:
        key = text_key(config)
        more = " and more" if len(lost) > 4 else ""
        what = f"{', '.join(lost[:4])}{more} stand beside {key}, and {model_class.__name__} reads them in {key} alone"
        raise MoecError("M204", what, text, f"move the sizes into {key}")


def _source(raw: dict[str, Any]) -> tuple[str, ...]:
    """What a config that was written by hand says of its sizes."""
    said = raw.get("moec_source")
    return (f"sizes written by hand ({said}), not a checkpoint",) if said else ()
