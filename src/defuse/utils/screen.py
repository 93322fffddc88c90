"""The terminal: text from data is shown as it is, and never controls it."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from defuse.utils.text import printable


class Console(rich.console.Console):
    """rich's console, for which no text is markup, and whose text has no control characters."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 (as rich's own)
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        shown = [s if s.control else Segment(printable(s.text), s.style) for s in buffer]
        return super()._render_buffer(shown)
