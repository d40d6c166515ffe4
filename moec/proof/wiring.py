"""Whether two files hold the same operators, wired alike, whatever their values are called.

Each operator gets a digest of its kind, its attributes and the digests of what it reads, as Merkle trees have it. So
two graphs are the same where they have the same digests, and a renamed value changes none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256

from moec.targets.backend import Constant

_OPERATOR = re.compile(r"(?P<writes>.*?) = (?P<kind>\S+?)\((?P<reads>.*)\)(?P<words>.*)", re.S)


def strange_operator(
    held: Mapping[str, Constant], due: Mapping[str, Constant], content: Callable[[Constant], str]
) -> Constant | None:
    """The first operator of a file that lowering does not give so, or one that lowering gives and the file lacks; None
    where both hold the same.

    Args:
        held, due: constants by name, operators among them in graph order, as a backend says them.
        content: a digest of a constant's numbers.
    """
    here, there = _digests(held, content), _digests(due, content)
    left = Counter(there.values())
    for name, digest in here.items():
        if not left[digest]:
            return held[name]
        left[digest] -= 1
    lacking = +left
    return next((due[name] for name, digest in there.items() if digest in lacking), None)


def _digests(constants: Mapping[str, Constant], content: Callable[[Constant], str]) -> dict[str, str]:
    """The digest of each operator, by the constant's name."""
    known: dict[str, str] = {}  # of values
    found: dict[str, str] = {}
    attributes: dict[str, list[str]] = {}
    for name, constant in constants.items():
        match = _OPERATOR.fullmatch(constant.text)
        if constant.weight is not None:
            known[name] = content(constant)
            place, _, attribute = name.rpartition(".")
            attributes.setdefault(place, []).append(f"{attribute}={known[name]}")
        elif match is None:
            known[name] = _digest(constant.text)
        else:
            scope = name.removesuffix(match["writes"].split(", ")[0])  # of a branch
            reads = [known.get(f"{scope}{r}") or known.get(r) or r for r in match["reads"].split(", ")]
            said = [match["kind"], match["words"], *sorted(attributes.get(name, ())), *reads]
            found[name] = _digest("\n".join(said))
            for k, write in enumerate(match["writes"].split(", ")):
                known[f"{scope}{write}"] = _digest(f"{found[name]} {k}")
    return found


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
