"""Intermediate results of an attack, with what they cost, kept so that a killed attack resumes.

An attack names each piece of its work (`Findings.get_or_compute`). A piece that is in the log is
not computed again, and its cost is counted once, however often the attack was interrupted.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from defuse.models.decoder import Decoder
from defuse.store import ResultLog, as_json
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT, Progress

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, sequences run forward and backward, and tokens run forward."""

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Findings:
    """Named findings and their costs, in memory, and in `log` if there is one."""

    def __init__(self, log: ResultLog | None = None) -> None:
        self._log = log
        self._known: dict[str, tuple[Any, Cost]] = {}
        for name in log.names() if log else ():
            entry: Any = log.get(name) if log else None
            self._known[name] = (entry["value"], Cost(**entry["cost"]))
        self._used: dict[str, Cost] = {}
        self._passes = Cost()
        self._is_computing = False
        self._progress: Progress = SILENT

    def __deepcopy__(self, _: object) -> "Findings":
        """Return itself: a copied model brings its hooks along, and they count here, too."""
        return self

    @property
    def cost(self) -> Cost:
        """The cost of all findings that were asked for, each counted once."""
        return sum(self._used.values(), Cost())

    def report_to(self, progress: Progress, stage: str, total: int) -> None:
        """Report each finding from now on to `progress`, as one of `total` pieces of `stage`."""
        self._progress = progress
        progress.start(stage, total)

    def skip(self, count: int) -> None:
        """Report `count` pieces of work as done that turned out not to be needed."""
        self._progress.advance(count)

    def get_or_compute(self, name: str, compute: Callable[[], T]) -> T:
        """Return the finding `name` as JSON gives it back (lists for tuples).

        It is computed only if it is not known. Only passes of models that are counted
        (`counting`) are part of its cost. Calls must not be nested. Raises UsageError for a value
        that is NaN or infinite.
        """
        if name not in self:
            self._compute(name, compute)
        value, cost = self._known[name]
        self._used[name] = cost
        self._progress.advance(note=name)
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def adopt(self, other: "Findings", names: Iterable[str]) -> None:
        """Keep those findings of `other` that have these names, at the cost they had there."""
        for name in names:
            if name in other and name not in self:
                self._add(name, *other._known[name])

    def _compute(self, name: str, compute: Callable[[], object]) -> None:
        assert not self._is_computing, "nested findings would be counted twice"  # noqa: S101
        self._is_computing, before, start = True, self._passes, time.perf_counter()
        try:
            value = compute()
        finally:
            self._is_computing = False
        cost = self._passes - before + Cost(time.perf_counter() - start)
        try:
            value = as_json(value)
        except ValueError as error:
            raise UsageError(
                f"model: computes NaN or infinity ({name}); attack it in float32, or give a model "
                "with finite weights"
            ) from error
        self._add(name, value, cost)

    def _add(self, name: str, value: Any, cost: Cost) -> None:  # noqa: ANN401 (any JSON)
        if self._log is not None:
            self._log.put(name, {"value": value, "cost": asdict(cost)})
        self._known[name] = (value, cost)

    @contextmanager
    def counting(self, *models: PreTrainedModel | None) -> Iterator[None]:
        """Count the passes through these models and through copies of them."""
        with ExitStack() as stack:
            for model in dict.fromkeys(each for each in models if each is not None):
                blocks = Decoder(model).blocks
                for handle in (
                    blocks[0].register_forward_hook(self._count_forward),
                    blocks[-1].register_forward_hook(self._count_backward),
                ):
                    stack.callback(handle.remove)
            yield

    def _count_forward(self, _: nn.Module, inputs: tuple[Any, ...], __: object) -> None:
        rows, time_ = inputs[0].shape[:2]
        self._passes += Cost(forward=rows, tokens=rows * time_)

    def _count_backward(self, _: nn.Module, __: object, output: Any) -> None:  # noqa: ANN401 (a block's output)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(self._add_backward)

    def _add_backward(self, gradient: Tensor) -> None:
        self._passes += Cost(backward=gradient.shape[0])


def open_findings(path: Path, identity: Mapping[str, Any], option: str = "out") -> Findings:
    """Findings that are written to the log `path` one by one, after those that it already holds.

    Raises UsageError, naming `option`, for a log of another identity and for a damaged one.
    """
    return Findings(ResultLog(path, identity, option))


def compute_with(
    findings: Findings, name: str, make: Callable[[], K], compute: Callable[[K], T]
) -> T:
    """Return the finding `name`, computed from what `make` returns.

    `make` is called only if the finding is not known. Its cost is not counted, so that making the
    same again after an interruption does not count twice.
    """
    made = [] if name in findings else [make()]
    return findings.get_or_compute(name, lambda: compute(*made))


def compute_beside(
    findings: Findings, name: str, compute: Callable[[], tuple[T, K]]
) -> tuple[T, Callable[[], K]]:
    """Return the first part of what `compute` returns, and a function that returns the second.

    Only the first part is kept on disk. After an interruption the second one is computed again when
    it is asked for. Do not ask for it within `get_or_compute`, which would count its cost again.
    """
    computed: list[K] = []

    def first() -> T:
        value, rest = compute()
        computed.append(rest)
        return value

    def second() -> K:
        if not computed:
            computed.append(compute()[1])
        return computed[0]

    return findings.get_or_compute(name, first), second
