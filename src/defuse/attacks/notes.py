"""What an attack has found so far: kept as it goes, so that a killed attack resumes.

An attack puts each piece of work behind a name (`Notes.once`); what has that name already is not
done again. What each piece cost is noted with it, and counted once, also after a resumption.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from defuse.models.decoder import Decoder
from defuse.utils.errors import UsageError
from defuse.utils.jsonl import append_line, drop_torn_line, read_lines

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What was spent: wall-clock seconds, sequences run forward and backward, tokens forward."""

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Notes:
    """Findings by name, with what they cost; in memory alone unless `open_notes` made them.

    `tell` hears the name of everything that is found anew.
    """

    def __init__(
        self,
        known: Mapping[str, tuple[Any, Cost]] | None = None,
        keep: Callable[[str, Any, Cost], None] = lambda *_: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._known = dict(known or {})
        self._keep = keep
        self._tell = tell
        self._used: dict[str, Cost] = {}
        self._passes = Cost()
        self._busy = False

    def __deepcopy__(self, _: object) -> "Notes":
        """Itself: a copy of a watched model brings its hooks along, which count here too."""
        return self

    @property
    def cost(self) -> Cost:
        """Of all that `once` has given, each piece counted once, whether found now or before."""
        return sum(self._used.values(), Cost())

    def once(self, name: str, find: Callable[[], T]) -> T:
        """What `find` gives, as JSON gives it back (lists for tuples), found once for each name.

        The models it runs must be watched; one call must not be made within another.
        """
        if not self.knows(name):
            assert not self._busy, "Notes.once within Notes.once would count work twice"  # noqa: S101
            self._busy, before, began = True, self._passes, time.perf_counter()
            try:
                value = json.loads(json.dumps(find()))
            finally:
                self._busy = False
            cost = self._passes - before + Cost(time.perf_counter() - began)
            self._add(name, value, cost)
            self._tell(name)
        value, cost = self._known[name]
        self._used[name] = cost
        return value

    def knows(self, name: str) -> bool:
        """Whether there is a finding of that name."""
        return name in self._known

    def adopt(self, other: "Notes", names: Iterable[str]) -> None:
        """Keep what `other` has by these names as if found here, at what it cost there."""
        for name in names:
            if other.knows(name) and not self.knows(name):
                self._add(name, *other._known[name])

    def _add(self, name: str, value: Any, cost: Cost) -> None:  # noqa: ANN401 (any JSON)
        self._keep(name, value, cost)
        self._known[name] = (value, cost)

    @contextmanager
    def watching(self, *models: PreTrainedModel | None) -> Iterator[None]:
        """Count what runs through these models, and copies of them, while the block lasts."""
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


def open_notes(
    path: Path, identity: Mapping[str, Any], tell: Callable[[str], None] = lambda _: None
) -> Notes:
    """The notes in the file `path`, which are written to the disk one by one.

    Raises UsageError if they belong to another `identity` (any JSON).
    """
    identity = json.loads(json.dumps(identity))
    known: dict[str, tuple[Any, Cost]] = {}
    if path.exists():
        header, *lines = [*read_lines(path)] or [identity]
        other = [field for field, value in identity.items() if header.get(field) != value]
        if other:
            raise UsageError(
                f"out: {path} has notes of an attack with other {' and '.join(other)}; finish it "
                "as it was begun, delete the file, or name another folder"
            )
        known = {line["name"]: (line["value"], Cost(**line["cost"])) for line in lines}
        drop_torn_line(path)

    def keep(name: str, value: Any, cost: Cost) -> None:  # noqa: ANN401 (any JSON)
        append_line(path, identity, {"name": name, "value": value, "cost": asdict(cost)})

    return Notes(known, keep, tell)
