"""Losses, answers and time left on the screen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from defuse.evaluate.loglikelihood import OnScored
from defuse.evaluate.run import OnModel
from defuse.unlearning.train import StepRecord
from defuse.utils.distributed import Processes


@contextmanager
def steps_shown(steps: int, console: Console) -> Iterator[Callable[[StepRecord], None]]:
    """A bar over `steps`, moved by the function it gives."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("loading", total=steps, losses="")

        def on_step(record: StepRecord) -> None:
            losses = f"forget {record.forget_loss:.4g} retain {record.retain_loss:.4g}"
            progress.update(task, advance=1, description=record.topic, losses=losses)

        yield on_step


@contextmanager
def losses_shown(steps: int, console: Console) -> Iterator[Callable[[int, float], None]]:
    """A bar over `steps`, moved to a step with its loss by the function it gives."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("fine-tuning", total=steps, loss="")

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss=f"loss {loss:.4g}")

        yield on_step


@contextmanager
def answers_shown(processes: Processes) -> Iterator[OnModel]:
    """A bar for every model that is asked, on the first process."""
    console = Console(stderr=True, quiet=not processes.is_first)
    with Progress(console=console) as progress:

        def on_model(name: str, count: int) -> OnScored:
            task = progress.add_task(name, total=count)
            return lambda finished: progress.update(task, advance=finished)

        yield on_model
