"""The command line: ``secateur demo | methods | inspect | prune | bench | study | report | verify``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from secateur.cli.bench import bench_command
from secateur.cli.demo import demo_command
from secateur.cli.inspect import inspect_command, methods_command
from secateur.cli.printing import print_line, warn
from secateur.cli.prune import prune_command
from secateur.cli.report import report_command
from secateur.cli.study import study_command
from secateur.cli.torchrun import in_each_process, in_one_process
from secateur.cli.verify import verify_command
from secateur.core import SecateurError
from secateur.core.jsonable import versions

__all__ = ["app", "main"]

LINES = 25  # of an error message


class Commands(TyperGroup):
    """Commands that end with exit code 2 and one message after an error, and with 130 after Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SecateurError as error:
            warn(f"error: {_shorten(str(error))}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            warn("interrupted")
            raise typer.Exit(130) from None


def _shorten(message: str) -> str:
    """Return a message without its lines after the first 25: a large model has hundreds of frozen axes."""
    lines = message.splitlines()
    rest = len(lines) - LINES
    return (
        message
        if rest <= 0
        else "\n".join(
            [*lines[:LINES], f"and {rest} more lines; `secateur inspect --all` lists every frozen axis"]
        )
    )


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune PyTorch models along their mathematical structure, and see what each cut changed.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo_command,
    "methods": methods_command,
    "inspect": inspect_command,
    "prune": prune_command,
    "bench": bench_command,
    "study": study_command,
    "report": report_command,
    "verify": verify_command,
}
for name, command in COMMANDS.items():
    app.command(name)(in_each_process(command) if command is prune_command else in_one_process(command))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show versions and exit.")] = False) -> None:
    """Handle the options before a command."""
    if version:
        print_line(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


def main() -> None:
    """Run the command line; each warning is one line."""
    warnings.showwarning = lambda message, *_: warn(f"warning: {' '.join(str(message).split())}")
    app()
