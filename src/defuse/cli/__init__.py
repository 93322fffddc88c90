"""The command line: one file per verb, heavy imports inside the verbs."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn, TextIO

import typer

from defuse.cli.attack import attack
from defuse.cli.crash import prepare_streams, sentence, shows_traceback, write_report
from defuse.cli.evaluate import evaluate
from defuse.cli.experiment import experiment
from defuse.cli.finetune import finetune
from defuse.cli.lab import lab
from defuse.cli.lm_eval_tasks import lm_eval_tasks
from defuse.cli.real import real
from defuse.cli.recipes import recipes
from defuse.cli.reproduce import reproduce
from defuse.cli.sweep import sweep
from defuse.cli.theory import theory
from defuse.cli.tofu import tofu
from defuse.cli.unlearn import unlearn
from defuse.utils.errors import Caution, UsageError
from defuse.utils.text import one_line

OUT_OF_MEMORY = "device: out of memory; lower batch_size or the topics' lengths, or use another"
app = typer.Typer(
    help="Unlearn knowledge from language models, and measure whether it holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Unlearn knowledge from language models, and measure whether it holds."""


app.command()(unlearn)
app.command()(evaluate)
app.command()(attack)
app.command()(experiment)
app.command()(sweep)
app.command()(finetune)
app.command()(reproduce)
app.command()(lm_eval_tasks)
app.command()(real)
app.command()(theory)
app.command()(tofu)
app.add_typer(lab, name="lab")
app.add_typer(recipes, name="recipes")


def main() -> None:
    """Run the command line: bad input is one line and exit code 2, Ctrl-C exit code 130.

    An error that nobody foresaw is one line with the name of a report, and exit code 1; `--debug`
    shows its traceback.
    """
    prepare_streams()
    debug = shows_traceback(sys.argv)
    arguments = sys.argv[1:]
    warnings.simplefilter("always", Caution)
    warnings.showwarning = _show
    try:
        app()
    except UsageError as error:
        _fail(str(error))
    except BrokenPipeError:  # whoever reads the output has left, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        _fail(f"{error.filename or 'file'}: {error.strerror or error}; mend that and run it again")
    except RuntimeError as error:
        # By name, so that no verb has to wait for PyTorch.
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            _fail(OUT_OF_MEMORY)
        _crash(error, arguments, debug=debug)
    except MemoryError:
        _fail(OUT_OF_MEMORY)
    except Exception as error:
        _crash(error, arguments, debug=debug)
    except BaseException as error:
        # Of the tokenizers' library, whose expressions have a bound of their own.
        if type(error).__name__ != "PanicException" or debug:
            raise
        _fail(f"model: its tokenizer fails on a text ({error}); use the tokenizer of another model")


def _crash(error: Exception, arguments: Sequence[str], *, debug: bool) -> NoReturn:
    if debug:
        raise error
    _fail(sentence(error, write_report(error, arguments)), code=1)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a caution as a sentence; other warnings, of the libraries, as Python does."""
    stream = file or sys.stderr
    if issubclass(category, Caution):
        print(f"Caution: {one_line(str(message))}.", file=stream)
    else:
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))


def _fail(said: str, code: int = 2) -> NoReturn:
    print(f"defuse: {one_line(said)}", file=sys.stderr)
    sys.exit(code)
