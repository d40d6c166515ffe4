"""The options in a target's text: a backend declares them, and one place refuses what they do not take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moec.registry import nearest
from moec.targets.backend import Refusal
from moec.targets.target import Target


@dataclass(frozen=True)
class Count:
    """An option that takes a whole number.

    Attributes:
        unit: what is counted, `N` for mere numbers.
        low, high: the least and the most.
    """

    unit: str = "N"
    low: int = 1
    high: int = 2**31 - 1

    def __str__(self) -> str:
        return self.unit

    def takes(self, text: str) -> bool:
        """Whether a text is such a number, in the digits 0 to 9."""
        return re.fullmatch(r"[0-9]{1,12}", text) is not None and self.low <= int(text) <= self.high


Declared = Mapping[str, "tuple[str, ...] | Count"]


def refused_options(target: Target, declared: Declared) -> list[Refusal]:
    """What of a target's options a backend does not understand.

    Args:
        declared: name -> the words that it takes, or a `Count`. In a name, a part in capitals stands for any word:
            `max_DIMENSION` is `max_batch` too.
    """
    return [
        _refusal(target, key, value, declared)
        for key, value in target.options.items()
        if not _takes(key, value, declared)
    ]


def _takes(key: str, value: str, declared: Declared) -> bool:
    form = _form(key, declared)
    return form is not None and (form.takes(str(value)) if isinstance(form, Count) else value in form)


def _form(key: str, declared: Declared) -> tuple[str, ...] | Count | None:
    patterns = {name: re.sub(r"[A-Z]+", ".+", name) for name in declared}
    return next((declared[name] for name, pattern in patterns.items() if re.fullmatch(pattern, key)), None)


def _refusal(target: Target, key: str, value: str, declared: Declared) -> Refusal:
    form, near = _form(key, declared), nearest(key, list(declared))
    if form is None and near:
        fix = f"did you mean {' or '.join(f'{name}={_shown(declared[name])}' for name in near)}?"
    elif isinstance(form, Count):
        fix = f"{key} takes a whole number from {form.low} to {form.high}"
    elif form is not None:
        fix = f"{key} takes {' or '.join(form)}"
    else:
        fix = f"options are {', '.join(f'{k}={_shown(v)}' for k, v in declared.items())}"
    return Refusal(f"no option {key}={value}", str(target), fix)


def _shown(form: tuple[str, ...] | Count) -> str:
    """What an option takes, in a few signs."""
    return form.unit if isinstance(form, Count) else "|".join(form)
