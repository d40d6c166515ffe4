"""Settings of a compilation from a TOML file, or from a preset that comes with moec."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from moec import registry
from moec.compiler.options import SETTINGS
from moec.errors import MoecError
from moec.files.nearby import nearby
from moec.files.regular import read_text
from moec.registry import did_you_mean

_PRESETS = Path(__file__).parents[1] / "presets"


def presets() -> dict[str, str]:
    """Name -> first comment line of the presets that come with moec."""
    files = sorted(_PRESETS.glob("*.toml"))
    return {f.stem: f.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for f in files}


def preset_text(name: str) -> str:
    """The TOML of a preset that comes with moec."""
    return read_text(_PRESETS / f"{name}.toml")


def read_config(config: Path) -> dict[str, Any]:
    """A TOML file, or a preset by name, as settings by name.

    Raises:
        MoecError: M202 for an unknown preset; M201 for an unknown key, with the nearest one, and for a value that its
            setting does not take.
    """
    given = {setting_of(key, str(config)): (key, value) for key, value in _tables(config).items()}
    return {name: _read(name, value, config, key) for name, (key, value) in given.items()}


def _read(name: str, value: Any, config: Path, key: str) -> Any:
    """A setting of the file; every error says which file it is in."""
    try:
        return SETTINGS[name].read(value, f"{config}: {key}")
    except MoecError as error:
        if str(config) in error.where:
            raise
        raise MoecError(error.code, error.what, f"{config}: {error.where}", error.fix) from error


def setting_of(key: str, where: str) -> str:
    """The name of the setting that a file calls `key`. Raises M201 for an unknown key, with the nearest one."""
    name = next((s.name for s in SETTINGS.values() if s.key == key), None)
    if name is None:
        raise MoecError("M201", f"unknown key {key!r}", where, _nearest(key))
    return name


def _tables(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(config))
    except FileNotFoundError:
        beside = nearby(config, "", lambda place: place.suffix == ".toml") if config.suffix == ".toml" else ""
        what, fix = f"no file or preset {str(config)!r}", beside or did_you_mean(str(config), list(presets()))
        raise MoecError("M202", what, "--config", fix) from None
    except (OSError, UnicodeDecodeError) as error:
        what = f"the file cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        raise MoecError("M201", what, str(config), "give a TOML file, or the name of a preset") from error
    except tomllib.TOMLDecodeError as error:
        raise MoecError("M201", f"not TOML: {error}", str(config), "see `moec ls presets` for examples") from error


def _text(config: Path) -> str:
    return read_text(config) if config.suffix == ".toml" else preset_text(config.name)


def _nearest(unknown: str) -> str:
    """Advice for a key that does not exist, where people may write a setting's flag or keyword."""
    other = {name: s.key for s in SETTINGS.values() for name in (s.name, s.flag.removeprefix("--"))}
    if unknown in other:
        return f"did you mean {other[unknown]}?"
    if unknown in registry.names("passes"):
        return f'write a pass as a table [[pass]] with name = "{unknown}"'
    return did_you_mean(unknown, [s.key for s in SETTINGS.values()])
