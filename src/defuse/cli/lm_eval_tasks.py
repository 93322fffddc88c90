"""`defuse lm-eval-tasks`: the folder of the task files for lm-evaluation-harness."""

from importlib.resources import files

import typer


def lm_eval_tasks() -> None:
    """Print the tasks' folder, for `lm_eval --include_path "$(defuse lm-eval-tasks)"`."""
    typer.echo(files("defuse") / "evaluate" / "lm_eval_tasks")
