"""Shell completion of the clients' commands: option names, and the values of options that have a fixed set of them.

``_TAILSRV_CAT_COMPLETE=bash_source tailsrv-cat`` prints the script for bash; zsh_source and fish_source those for zsh
and fish. The script calls the command again, with bash_complete and so on, and with the words typed so far in
COMP_WORDS and COMP_CWORD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tailsrv_client.command_line import Command

SCRIPTS: Final = {
    "bash": """\
{function}() {{
    COMPREPLY=($(env COMP_WORDS="${{COMP_WORDS[*]}}" COMP_CWORD="$COMP_CWORD" {variable}=bash_complete "$1"))
}}
complete -o default -F {function} {name}
""",
    "zsh": """\
#compdef {name}
{function}() {{
    local -a found
    found=("${{(@f)$(env COMP_WORDS="${{words[*]}}" COMP_CWORD=$((CURRENT - 1)) {variable}=zsh_complete {name})}}")
    if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}}
compdef {function} {name}
""",
    "fish": """\
function {function}
    env COMP_WORDS=(commandline -cp | string collect) COMP_CWORD=(commandline -t | string collect) \\
        {variable}=fish_complete {name}
end
complete --command {name} --arguments "({function})"
""",
}


def complete(command: Command, instruction: str, environment: Mapping[str, str]) -> str:
    """What to print for `instruction`, the value of the variable. Raises `UsageError`."""
    shell, _, action = instruction.partition("_")
    if shell not in SCRIPTS or action not in {"source", "complete"}:
        shells = ", ".join(f"{each}_source" for each in SCRIPTS)
        raise UsageError(f"{command.completion_variable}={instruction} is not known; write one of {shells}")
    if action == "source":
        function = f"_{command.name.replace('-', '_')}_completion"
        return SCRIPTS[shell].format(function=function, variable=command.completion_variable, name=command.name)
    words = environment.get("COMP_WORDS", "").split()
    typed = environment.get("COMP_CWORD", "")
    if shell == "fish":
        current, before = typed, words[:-1] if typed else words
    else:
        at = int(typed) if typed.isascii() and typed.isdigit() else len(words)
        current, before = "".join(words[at : at + 1]), words[:at]
    return "".join(f"{word}\n" for word in _candidates(command, before[-1] if before else "", current))


def _candidates(command: Command, previous: str, current: str) -> list[str]:
    for option in command.options:
        if previous in option.names and option.const is None:
            return [choice for choice in option.choices if choice.startswith(current)]
    names = [name for option in command.options for name in option.names] + ["-h", "--help", "--version"]
    return [name for name in names if current.startswith("-") and name.startswith(current)]
