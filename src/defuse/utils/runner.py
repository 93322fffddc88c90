"""Where calls are carried out: in this process, in several processes, or on Ray."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal

from defuse.utils.config import Count, NotNegative, check_fields
from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError
from defuse.utils.ray_workers import connected, fitting, ray_workers
from defuse.utils.workers import Submit, available_cores, local_workers

RunnerName = Literal["serial", "processes", "ray"]


@dataclass(frozen=True)
class Runner:
    """How calls are carried out.

    `jobs`: calls at a time; None is one a core, and on Ray as many as fit. The rest is of Ray
    alone. `address`: of a cluster; None starts Ray on this machine, for these calls alone. Each
    call has `cpus` threads and `gpus` GPUs; None is for the caller to decide. Raises UsageError for
    numbers that make no sense, and where Ray is missing.
    """

    name: RunnerName = "serial"
    jobs: Count | None = None
    address: str | None = None
    cpus: Count = 1
    gpus: NotNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name == "ray" and find_spec("ray") is None:
            raise UsageError(f"runner: ray is not installed; {install_hint('ray')}")

    def at_a_time(self, calls: int) -> int:
        """How many of `calls` are carried out at a time on this machine."""
        if self.name == "serial":
            return 1
        return max(1, min(self.jobs or available_cores(), calls))

    @contextmanager
    def workers(self, calls: int, begin: Callable[[int], object]) -> Iterator[Submit]:
        """Submit calls to processes, each set up by `begin` for its number of threads."""
        if self.name != "ray":
            with local_workers(self.at_a_time(calls), partial(begin, 1)) as submit:
                yield submit
            return
        cpus, gpus = None if self.jobs is None else self.jobs * self.cpus, self.gpus or 0.0
        with connected(self.address, cpus):
            fit = fitting(self.cpus, gpus, grows=self.address is not None)
            count, set_up = min(self.jobs or fit, calls), partial(begin, self.cpus)
            with ray_workers(count, set_up, self.cpus, gpus) as submit:
                yield submit
