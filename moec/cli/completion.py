"""`moec completion SHELL`: the script with which a shell completes verbs, options, targets, passes and presets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from moec import registry
from moec.cli.config import presets
from moec.cli.console import common, emit, say

_NAMES: dict[str, Callable[[], Any]] = {
    "target": lambda: registry.names("backends"),
    "pipeline": lambda: registry.names("passes"),
    "config": presets,
}
SHELLS = ("bash", "zsh", "fish")


def completer(option: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]] | None:
    """What a shell offers as the value of an option; None where moec knows no names for it."""
    names = _NAMES.get(option)
    if names is None:
        return None
    return lambda context, parameter, begun: [CompletionItem(name) for name in names() if name.startswith(begun)]


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@common
def completion_command(shell: str, as_json: bool, quiet: bool) -> None:
    """Print the script that lets SHELL complete moec's commands.

    \b
    bash:  eval "$(moec completion bash)"     in ~/.bashrc
    zsh:   eval "$(moec completion zsh)"      in ~/.zshrc
    fish:  moec completion fish | source      in ~/.config/fish/config.fish
    """
    from moec.cli import COMPLETION, cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "moec", COMPLETION).source()
    emit({"shell": shell, "script": script}) if as_json else say(script)
