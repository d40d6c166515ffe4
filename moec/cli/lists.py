"""Options that take a list: `bf16,int4`, `1,8,64`."""

from __future__ import annotations

import click

from moec.errors import MoecError


def words(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """`a,b` as its parts, each once."""
    return tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))


def numbers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """`1,8` as whole numbers; none where the option may be empty. Raises M201."""
    found = words(context, option, value)
    if not found and option.default == "":
        return ()
    if not found or not all(word.removeprefix("-").isdecimal() for word in found):
        raise MoecError("M201", f"{value!r} is no list of whole numbers", option.opts[0], "write them as 1,8,64")
    whole = tuple(dict.fromkeys(int(word) for word in found))
    if min(whole) < 1:
        raise MoecError("M201", f"{min(whole)} is below 1", option.opts[0], "write them as 1,8,64")
    return whole
