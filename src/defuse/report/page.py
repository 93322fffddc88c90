"""A report as typed data, and its page: nothing is fetched, and all text is escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from defuse.utils.config import check_fields

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class TableData:
    """Cells of text; the first column names the rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Flip:
    """A question that a model answered rightly until `trigger` stood in it.

    `before` and `after`: the prompt's text around the trigger. `right` and `given`: the choices'
    texts.
    """

    model: str
    before: str
    trigger: str
    after: str
    right: str
    given: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Quote:
    """A text as a model saw it, and what is to be said of it."""

    text: str
    remark: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order, as far as it is given.

    `figure`: what `embed_figure` gives, and `figure_text` what it shows, in words.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    figure: str | None = None
    figure_text: str = ""
    tables: Sequence[TableData] = ()
    flips: Sequence[Flip] = ()
    quotes: Sequence[Quote] = ()
    listing: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Page:
    """`lead`: what was found, in a few sentences."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]

    def __post_init__(self) -> None:
        check_fields(self)


def render(page: Page) -> str:
    """The page as HTML, complete in itself."""
    environment = Environment(
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = files(__package__ or "defuse.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)


def embed_figure(figure: Figure) -> str:
    """A figure as the address of an image that holds itself (SVG)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
