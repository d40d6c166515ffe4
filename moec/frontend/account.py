"""What a source takes its model to be, and what of the user's files and inputs stays outside of the engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from moec.errors import MoecError
from moec.program.decoder_signature import is_past
from moec.registry import nearest

Thing = Literal["input", "tensor", "file"]
FLAG = "--leave-out"
_OF_MEDIA = re.compile(r"image|video|audio|pixel|grid|visual|vision|(^|_)mm_")


@dataclass(frozen=True)
class LeftOut:
    """One thing that the engine does without, and why that is right. `asked`: because the user said so."""

    thing: Thing
    name: str
    why: str
    asked: bool = False

    @property
    def is_told(self) -> bool:
        """Whether the terminal says why: not of inputs that every caller may leave out, unless they speak of images,
        videos or sound."""
        return self.thing != "input" or self.asked or bool(_OF_MEDIA.search(self.name))


@dataclass(frozen=True)
class Account:
    """What is compared with what: printed before a compilation, kept in the manifest and on the page.

    Attributes:
        model: the class that was opened.
        declared: what the files say that the model is; empty where there are none.
        inputs: names of the engine's inputs.
        tensors: how many tensors the files hold; used: how many of them the model takes.
        left_out: inputs of the model's forward, tensors and files that the engine does without.
        notes: what else a user must know: an adapter that was merged, a fixed batch.
        stated: what the model's own card says of it, and what hubs call its task, by the names of hubs: `license`,
            `language`, `base_model`, `pipeline_tag` and the like.
        hub: the id of the hub's repository that it was read from; empty for a folder or a file of the user's own.
    """

    model: str
    declared: str = ""
    inputs: tuple[str, ...] = ()
    tensors: int = 0
    used: int = 0
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = field(default=())
    stated: Mapping[str, str | list[str]] = field(default_factory=dict)
    hub: str = ""

    def lines(self) -> list[str]:
        """The account in a few lines for the terminal: the first names the model, then notes and what was left out on
        demand, speaks of images or sound, or stands in the files; what every caller may leave out is only named."""
        declared = f", {self.declared}" if self.declared else ""
        taken = f"; {self.used} of {self.tensors} tensors" if self.tensors else ""
        quiet = [x.name for x in self.left_out if not x.is_told]
        rest = f"; inputs left to the model: {', '.join(quiet)}" if quiet else ""
        caches = sum(map(is_past, self.inputs))
        named = [*self.inputs[: len(self.inputs) - caches], *([f"a cache of {caches} tensors"] if caches else [])]
        first = f"{self.model}{declared}{taken}; inputs {', '.join(named)}{rest}"
        return [first, *self.notes, *grouped(x for x in self.left_out if x.is_told)]

    def to_plain(self) -> dict[str, Any]:
        """JSON's types, for the manifest."""
        lists = ("inputs", "left_out", "notes")
        return {name: list(value) if name in lists else value for name, value in asdict(self).items()}


def grouped(left_out: Iterable[LeftOut]) -> list[str]:
    """What was left out in lines, one for each reason, long lists cut."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for item in left_out:
        reasons.setdefault((item.thing, item.why), []).append(item.name)
    return [f"left out: {thing} {cut(names)}: {why}" for (thing, why), names in reasons.items()]


def cut(names: Sequence[str], most: int = 3) -> str:
    """A list of names, the last of a long one only counted."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class LeaveOut:
    """What the user asked to leave out, as patterns of names (`*`, `?`), commas between them; each must be of use."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = [part.strip() for text in patterns for part in text.split(",") if part.strip()]
        self._met: set[str] = set()

    def __contains__(self, name: object) -> bool:
        met = [p for p in self.patterns if fnmatchcase(str(name), p)]
        self._met.update(met)
        return bool(met)

    def check(self, names: Iterable[str]) -> None:
        """Raise M201 for a pattern that nothing was left out for; `names` are those that could be."""
        idle = next((p for p in self.patterns if p not in self._met), None)
        if idle is not None:
            known = sorted(names)
            near = nearest(idle.strip("*?"), known)
            listed = cut([*near, *(name for name in known if name not in near)], 8)
            fix = f"leave the flag out, or name one of: {listed}" if known else "leave the flag out"
            fix = f"did you mean {' or '.join(near)}? If not, {fix}" if near else fix
            raise MoecError("M201", f"there is nothing to leave out that is called {idle!r}", FLAG, fix)
