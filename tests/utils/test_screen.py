"""Text from data neither controls the terminal nor is markup."""

from io import StringIO

from rich.table import Table

from defuse.utils.screen import Console
from defuse.utils.text import LONGEST_SENTENCE, one_line, printable

HOSTILE = "a[bold]b[/]\x1b]0;title\x07\x1b[2J\x9b1m"


def test_whatever_is_printed_has_no_control_characters_and_is_no_markup() -> None:
    console = Console(width=200, file=StringIO(), force_terminal=True, color_system=None)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a[bold]b[/]" in said
    assert "\x1b]" not in said
    assert "\x1b[2J" not in said
    assert "\x07" not in said
    assert "\x9b" not in said


def test_printable_keeps_letters_of_all_scripts_and_line_breaks() -> None:
    assert printable("naïve 東京\n\tβ → ν") == "naïve 東京\n\tβ → ν"
    assert printable("\x1b[2J\u202e") == "\\x1b[2J\\u202e"


def test_a_sentence_is_one_line_and_keeps_its_remedy() -> None:
    assert one_line("name: a\nb\tc\u2028d\x1b; e") == "name: a b c d\\x1b; e"
    long = one_line(f"name: {'x' * 10**6} is refused; give another")
    assert long.startswith("name: xxx")
    assert long.endswith("xxx is refused; give another")
    assert len(long) < LONGEST_SENTENCE + 10
