"""Progress of questions on the screen."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from defuse.evaluate.loglikelihood import OnScored
from defuse.evaluate.run import OnModel
from defuse.utils.distributed import Processes


@contextmanager
def answers_shown(processes: Processes) -> Iterator[OnModel]:
    """A bar for every model that is asked, on the first process."""
    console = Console(stderr=True, quiet=not processes.is_first)
    with Progress(console=console) as progress:

        def on_model(name: str, count: int) -> OnScored:
            task = progress.add_task(name, total=count)
            return lambda finished: progress.update(task, advance=finished)

        yield on_model
