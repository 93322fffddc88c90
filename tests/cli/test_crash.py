"""An error that nobody foresaw: one sentence, and a report without secrets."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.main import get_command

from defuse import cli
from defuse.cli import app
from defuse.cli.crash import without_secrets

VERBS = [[name] for name in get_command(app).commands if name not in ("lab", "recipes")]  # type: ignore[attr-defined]
SUBVERBS = [["lab", "train"], ["recipes", "copy"]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["defuse", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def break_every_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(name: str) -> Callable[..., None]:
        def verb(_: Annotated[list[str] | None, typer.Argument()] = None) -> None:
            raise ZeroDivisionError("a bug\nin two lines")

        verb.__name__ = name
        return verb

    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    for group in groups:
        assert group is not None
        for command in group.registered_commands:
            assert command.callback is not None
            monkeypatch.setattr(command, "callback", failing(command.callback.__name__))


class PanicException(BaseException):
    """What Rust raises, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (
            PanicException("retry-limit over"),
            "fails on a text (retry-limit over); use",
        ),
    ],
)
def test_too_little_memory_and_a_tokenizer_s_panic_are_sentences(
    error: BaseException,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert run([], monkeypatch) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("verb", [*VERBS, *SUBVERBS], ids=" ".join)
def test_a_bug_in_any_verb_is_a_sentence_with_a_report(
    verb: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_every_verb(monkeypatch)
    assert run(verb, monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("defuse: an error that should not happen (ZeroDivisionError: a bug)")
    assert said.count("\n") == 1
    (report,) = here.glob("crash-*.txt")
    assert str(report) in said
    text = report.read_text()
    assert f"command: defuse {' '.join(verb)}" in text
    assert 'raise ZeroDivisionError("a bug' in text
    assert "transformers " in text


def test_the_report_is_in_runs_where_there_is_one_and_holds_the_recipe(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_every_verb(monkeypatch)
    Path("runs").mkdir()
    Path("recipe.yaml").write_text("model: m\nhub_token: hf_abcdefgh1234\n")
    assert run(["unlearn", "recipe.yaml"], monkeypatch) == 1
    (report,) = (here / "runs").iterdir()
    assert "recipe.yaml:\nmodel: m\nhub_token: …" in report.read_text()


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    break_every_verb(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["defuse", "unlearn", "--debug"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
    assert not list(Path().glob("crash-*"))


def test_secrets_are_taken_out_wherever_they_are() -> None:
    text = "api_key: abc\n  HF_TOKEN=xyz\nforget_tokens.txt hf_ABCdef123456 password: p"
    clean = without_secrets(text)
    for secret in ("abc", "xyz", "ABCdef"):
        assert secret not in clean
    assert "forget_tokens.txt" in clean


@pytest.mark.parametrize("closed", [">&-", "2>&-", "| true"])
def test_closed_output_is_no_traceback(closed: str) -> None:
    command = f"{sys.executable} -m defuse recipes {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert "Traceback" not in done.stderr


def test_a_locale_without_our_letters_is_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import defuse.cli as c; c.prepare_streams(); print('a → b')"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "a \\u2192 b\n"
