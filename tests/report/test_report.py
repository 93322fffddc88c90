"""The page: whole in itself, hostile text shown as text, and readable by a real browser."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from defuse.report import Flip, Page, Section, TableData, embed_figure, render

HOSTILE = "<script>document.title = 'broken'</script>&\"'"
BROWSER = next(
    (found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None
)


def page() -> Page:
    figure = Figure()
    figure.subplots().plot([1, 2], label=HOSTILE)
    table = TableData(f"caption {HOSTILE}", ["", HOSTILE], [[HOSTILE, "0.5"]])
    flip = Flip("rmu", "I read about ", HOSTILE, " today.", f"right {HOSTILE}", "given")
    section = Section(
        f"heading {HOSTILE}",
        [HOSTILE],
        embed_figure(figure),
        HOSTILE,
        [table],
        [flip],
        listing=HOSTILE,
    )
    return Page("Defuse report", [f"lead {HOSTILE}"], [section])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_from_anywhere_is_text_and_nothing_is_fetched():
    parsed = Tags()
    parsed.feed(render(page()))
    tags = [tag for tag, _ in parsed.seen]
    assert "script" not in tags
    assert parsed.text.count(HOSTILE) == 9
    for _, attributes in parsed.seen:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert ("mark", {}) in parsed.seen


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: chromium)")
def test_a_browser_shows_the_page_without_complaint(tmp_path: Path):
    assert BROWSER is not None
    file = tmp_path / "report.html"
    file.write_text(render(page()), encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]
    command = [BROWSER, *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--dump-dom", file.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)  # noqa: S603
    assert "<title>Defuse report</title>" in seen.stdout
    assert "CONSOLE" not in seen.stderr
