"""The command line: one file per verb, heavy imports inside the verbs."""

import sys

import typer

from defuse.cli.evaluate import evaluate
from defuse.cli.lab import lab
from defuse.cli.real import real
from defuse.cli.unlearn import unlearn
from defuse.errors import UsageError

app = typer.Typer(
    help="Unlearn knowledge from language models, and measure whether it holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(unlearn)
app.command()(evaluate)
app.command()(real)
app.add_typer(lab, name="lab")


def main() -> None:
    """Run the command line: bad input is one line and exit code 2, Ctrl-C exit code 130."""
    try:
        app()
    except UsageError as error:
        print(f"defuse: {error}", file=sys.stderr)
        sys.exit(2)
