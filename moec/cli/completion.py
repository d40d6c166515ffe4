"""`moec completion SHELL`: the script with which a shell completes moec's commands, and how each shell is answered."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from moec.cli.console import common, emit, say

# a value that ends in one of these goes on, so that no space follows it
_BASH = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" kind value
    local begun="${line##*[[:space:]]}"
    local path="$begun" cut=""
    [[ $begun == -*=* ]] && path="${begun#*=}"
    [[ $COMP_WORDBREAKS == *:* ]] && cut="${begun%%"${begun##*[:=]}"}"  # words of their own to bash
    COMPREPLY=()
    while IFS=',' read -r kind value; do
        case $kind in
            plain)
                COMPREPLY+=("${value#"$cut"}")
                [[ $value == *[:=,._] ]] && compopt -o nospace
                ;;
            dir | file)
                compopt -o filenames
                while read -r value; do COMPREPLY+=("$value"); done < <(compgen -"${kind:0:1}" -- "$path")
                ;;
        esac
    done < <(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a whole begun described response
    local kind key descr
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
%(complete_var)s=zsh_complete %(prog_name)s)}")
    for kind key descr in ${response}; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                if [[ $key == *[:=,._] ]]; then
                    begun+=("$key")
                elif [[ $descr == _ ]]; then
                    whole+=("$key")
                else
                    described+=("$key:$descr")
                fi
                ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#whole )) && compadd -U -V unsorted -a whole
    (( $#begun )) && compadd -U -S '' -V unsorted -a begun
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
_FISH = """\
function %(complete_func)s
    set -l response (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) \
COMP_CWORD=(commandline -t) %(prog_name)s)
    for completion in $response
        set -l found (string split -m 1 "," -- $completion)
        switch $found[1]
            case dir
                __fish_complete_directories $found[2]
            case file
                __fish_complete_path $found[2]
            case plain
                echo $found[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Answers(ShellComplete):
    """What every shell gets: a value that was begun as `--option=value` is answered as one word."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        option, equals, _ = incomplete.partition("=")
        found = super().get_completions(args, incomplete)
        if not equals or not option.startswith("-"):
            return found
        return [
            CompletionItem(f"{option}={item.value}", help=item.help) if item.type == "plain" else item for item in found
        ]


class _Bash(_Answers):
    name, source_template = "bash", _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The line up to the cursor: bash itself takes it apart at colons, too."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        begun = "" if line[-1:].isspace() else words.pop()
        return words[1:], begun

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"


class _Zsh(_Answers, ZshComplete):
    source_template = _ZSH


class _Fish(_Answers, FishComplete):
    source_template = _FISH


SHELLS = ("bash", "zsh", "fish")
for _name, _class in zip(SHELLS, (_Bash, _Zsh, _Fish), strict=True):
    add_completion_class(_class, _name)


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

    found: Any = get_completion_class(shell)
    script = found(cli, {}, "moec", COMPLETION).source()
    emit({"shell": shell, "script": script}) if as_json else say(script)
