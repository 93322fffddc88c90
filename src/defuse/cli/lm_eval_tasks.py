"""`defuse lm-eval-tasks`: where the task files for lm-evaluation-harness lie."""

from importlib.resources import files

import typer


def lm_eval_tasks() -> None:
    """Print the folder for `lm_eval --include_path "$(defuse lm-eval-tasks)"`."""
    typer.echo(files("defuse") / "evaluate" / "lm_eval_tasks")
