"""``expresser completion bash|zsh|fish``."""

from expresser.cli import Command
from expresser.commands import group


def bash() -> None:
    """Print the script for bash.

    Example: expresser completion bash > ~/.local/share/bash-completion/completions/expresser
    """
    _print("bash")


def zsh() -> None:
    """Print the script for zsh.

    Example: expresser completion zsh > ~/.zfunc/_expresser
    """
    _print("zsh")


def fish() -> None:
    """Print the script for fish.

    Example: expresser completion fish > ~/.config/fish/completions/expresser.fish
    """
    _print("fish")


def _print(shell: str) -> None:
    from expresser.completion import forms
    from expresser.completion_scripts import script

    print(script(shell, forms()), end="")


COMPLETION: Command = Command(
    name="completion",
    summary="Print a script that completes commands and options on TAB, for bash, zsh or fish.",
    example="expresser completion bash > ~/.local/share/bash-completion/completions/expresser",
    run=group(lambda: COMPLETION, {"bash": bash, "zsh": zsh, "fish": fish}),
)
