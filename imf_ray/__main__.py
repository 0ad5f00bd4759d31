"""The program `imf-ray COMMAND`, also `python -m imf_ray COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from imf_ray.cli import EXIT_USER_ERROR, exit_code, print_text, run_command
from imf_ray.command import load_command
from imf_ray.schema import COMMANDS
from imf_ray.suggestions import suggest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code.

    Without arguments, print the list of commands.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    program = "python -m imf_ray" if Path(sys.argv[0]).name == "__main__.py" else "imf-ray"
    if name in ("--help", "-h", "--help-all"):
        print_text(overview(program))
        return exit_code()
    if name not in COMMANDS:
        print(
            f"Error: Unknown command {name}{suggest(name, COMMANDS)} Commands are: "
            f"{', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    return run_command(load_command(name), arguments, f"{program} {name}")


def overview(program: str) -> str:
    """Return the help text that lists all commands with one line each."""
    lines = [f"  {name:<10}{load_command(name).summary}" for name in COMMANDS]
    return "\n".join(
        [
            f"usage: {program} COMMAND [key=value ...]",
            "",
            "Commands:",
            *lines,
            "",
            f"{program} COMMAND --help explains a command and its options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
