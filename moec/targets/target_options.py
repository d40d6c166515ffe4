"""The options in a target's text: a backend declares them, and one place refuses what they do not take."""

from __future__ import annotations

import re

from moec.registry import did_you_mean, nearest
from moec.targets.backend import Refusal
from moec.targets.declared import Count, Declared, Option
from moec.targets.target import Target


def refused_options(target: Target, declared: Declared) -> list[Refusal]:
    """What of a target's options a backend does not understand."""
    return [
        _refusal(target, key, value, declared)
        for key, value in target.options.items()
        if not _takes(key, value, declared)
    ]


def _takes(key: str, value: str, declared: Declared) -> bool:
    option = _option(key, declared)
    return option is not None and option.takes(str(value))


def _option(key: str, declared: Declared) -> Option | None:
    patterns = {name: re.sub(r"[A-Z]+", ".+", name) for name in declared}
    return next((declared[name] for name, pattern in patterns.items() if re.fullmatch(pattern, key)), None)


def _refusal(target: Target, key: str, value: str, declared: Declared) -> Refusal:
    option, near = _option(key, declared), nearest(key, list(declared))
    if option is None and near:
        fix = f"did you mean {' or '.join(f'{name}={declared[name]}' for name in near)}?"
    elif option is None:
        fix = f"options are {', '.join(f'{name}={option}' for name, option in declared.items())}"
    elif isinstance(option.form, Count):
        fix = f"{key} takes a whole number from {option.form.low} to {option.form.high}"
    else:
        fix = did_you_mean(value, list(option.words), f"{key} takes {' or '.join(option.words)}")
    return Refusal(f"no option {key}={value}", str(target), fix)
