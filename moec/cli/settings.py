"""Settings of a compilation from a TOML file or a preset, overridden by the command line."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.pipeline.hooks import DumpHook
from moec.pipeline.pipeline import Pipeline
from moec.registry import did_you_mean

KEYS = (
    "target",
    "pass",
    "optimize_for",
    "verify",
    "tolerance",
    "seed",
    "inputs",
    "layout",
    "text",
    "tokens",
    "window",
    "max_kl",
    "max_perplexity_ratio",
    "calibration",
    "calibration_tokens",
)


def presets() -> dict[str, str]:
    """Name -> first comment line of the presets that come with moec."""
    folder = resources.files("moec") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text().splitlines()[0].lstrip("# ") for f in files}


def read_config(config: Path) -> dict[str, Any]:
    """A TOML file, or a preset by name, as keyword arguments of `moec.compile`. Raises M201 on unknown keys, M202 on
    unknown names."""
    try:
        text = (
            config.read_text()
            if config.suffix == ".toml"
            else (resources.files("moec") / "presets" / f"{config}.toml").read_text()
        )
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise MoecError(
            "M202", f"no file or preset {str(config)!r}", "--config", did_you_mean(str(config), list(presets()))
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise MoecError("M201", f"not TOML: {error}", str(config), "see `moec ls presets` for examples") from error
    unknown = next((k for k in data if k not in KEYS), None)
    if unknown:
        raise MoecError("M201", f"unknown key {unknown!r}", str(config), did_you_mean(unknown, list(KEYS)))
    return {**{k: v for k, v in data.items() if k != "pass"}, "pipeline": Pipeline.of(data.get("pass", []))}


def settings_of(config: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `moec.compile`; what the command line says wins over the file."""
    settings = read_config(config) if config else {}
    dump, save_hf, passes = options.pop("dump"), options.pop("save_hf"), options.pop("passes")
    given = {k: v for k, v in options.items() if v not in (None, ())}
    defaults = {"target": "onnxruntime", "verify": "auto"}
    settings |= {k: v for k, v in given.items() if k not in settings or v != defaults.get(k)}
    if passes:
        settings["pipeline"] = Pipeline.parse(", ".join(passes))
    if dump:
        settings["hooks"] = [DumpHook(dump)]
    if save_hf:
        settings["save_hf"] = save_hf
    return settings
