"""An evaluation that was killed goes on, and one that is shared out comes together: same digits."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Barrier
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defuse import cli
from defuse.decoder import Decoder
from defuse.errors import UsageError
from defuse.evaluate import Evaluation, Settings, evaluate_questions
from defuse.evaluate.journal import Journal
from defuse.evaluate.ledger import Ledger, Scores
from defuse.evaluate.results import Part
from defuse.evaluate.robustness import evaluate_parts
from defuse.evaluate.scorer import OnScored
from defuse.evaluate.scorer import _score_batch as score_batch
from defuse.evaluate.trees import TokenTree
from defuse.files import held
from defuse.models import LoadedModel
from defuse.processes import Processes
from defuse.questions import Perturbation, Question
from tests.conftest import build_llama, build_tokenizer

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
QUESTIONS = tuple(
    Question(
        f"q{i}", f"What does cat {i} see{' now' * (i % 5)}?", ("a", "the moon", "b", "c"), i % 4
    )
    for i in range(12)
)
PERTURBATION = Perturbation(("mumps",), "choice", ("spoon",))
IDENTITY = {"weights": "abc", "device": "cpu"}
Kept = list[tuple[str, Scores]]


@cache
def loaded() -> LoadedModel:
    return LoadedModel(build_llama(layers=2), build_tokenizer(), "tiny")


def ask(ledger: Ledger, on_scored: OnScored = lambda _: None) -> Evaluation:
    """About two questions a batch."""
    asked = (QUESTIONS, Settings(token_budget=150), PERTURBATION)
    return evaluate_questions(loaded(), *asked, on_scored=on_scored, ledger=ledger)


def logprobs(evaluation: Evaluation) -> list[tuple[float, ...]]:
    return [o.logprobs for outcomes in evaluation.outcomes.values() for o in outcomes]


def collecting(kept: Kept, **given: Any) -> Ledger:
    return Ledger(keep=lambda name, scores: kept.append((name, scores)), **given)


@pytest.fixture(scope="module")
def whole() -> tuple[Kept, list[tuple[float, ...]]]:
    """The batches of an undisturbed evaluation, and what came of it."""
    kept: Kept = []
    found = ask(collecting(kept))
    assert len(kept) > 3
    return kept, logprobs(found)


def known(kept: Sequence[tuple[str, Scores]]) -> dict[str, Scores]:
    found: dict[str, Scores] = {}
    for name, scores in kept:
        found.setdefault(name, {}).update(scores)
    return found


@settings(max_examples=10, deadline=None)
@given(drawn=st.data())
def test_whatever_batches_are_known_the_rest_is_scored_and_no_digit_differs(whole, drawn) -> None:
    batches, expected = whole
    before = drawn.draw(st.lists(st.sampled_from(batches), unique_by=lambda b: min(b[1])))
    kept: Kept = []
    found = ask(collecting(kept, known=known(before)))
    assert logprobs(found) == expected
    assert sorted(min(s) for _, s in kept + before) == sorted(min(s) for _, s in batches)


@dataclass(frozen=True)
class Thread(Processes):
    """A process for the test's sake: what it gathers passes over a board."""

    board: dict[int, Any] = field(default_factory=dict)
    barrier: Barrier = field(default_factory=lambda: Barrier(1))

    def gather(self, value):
        self.board[self.rank] = value
        self.wait()
        values = [self.board[rank] for rank in range(self.count)]
        self.wait()
        return values

    def wait(self):
        self.barrier.wait()


def in_threads(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    shared: tuple[dict[int, Any], Barrier] = {}, Barrier(count, timeout=60)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [Thread(rank, count, *shared) for rank in range(count)]))


@pytest.mark.parametrize("count", [2, 3, 9])
def test_processes_share_the_batches_each_scored_once_and_no_digit_differs(whole, count) -> None:
    """More processes than batches, too."""
    batches, expected = whole
    kept: Kept = []
    found = in_threads(count, lambda processes: ask(collecting(kept, processes=processes)))
    assert [logprobs(each) for each in found] == [expected] * count
    assert sorted(min(s) for _, s in kept) == sorted(min(s) for _, s in batches)


def test_processes_share_several_subjects_and_each_is_as_asked_alone() -> None:
    subjects = ("cats", None, "dogs")
    parts = [Part(QUESTIONS[i::3], Settings(subject=name)) for i, name in enumerate(subjects)]
    alone = [
        o for p in parts for o in logprobs(evaluate_questions(loaded(), p.questions, p.settings))
    ]

    def together(processes: Processes) -> list[tuple[float, ...]]:
        return logprobs(evaluate_parts(loaded(), parts, ledger=Ledger(processes=processes)))

    assert in_threads(2, together) == [alone, alone]


def test_lists_of_one_batch_each_are_dealt_out_too() -> None:
    ledgers = [Ledger(processes=Processes(rank, 2)) for rank in range(2)]
    shares = [[[*ledger.turns([[number]])] for number in range(4)] for ledger in ledgers]
    assert [[len(share) for share in each] for each in shares] == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_progress_counts_what_is_known_and_what_others_do(whole) -> None:
    batches, _ = whole

    def told(processes: Processes) -> int:
        counts: list[int] = []
        ledger = Ledger(known(batches[:2]), processes=processes)
        ask(ledger, counts.append)
        return sum(counts)

    assert in_threads(2, told) == [len(QUESTIONS)] * 2


def written(folder: Path, *batches: tuple[str, Scores]) -> Journal:
    journal = Journal(folder)
    ledger = journal.open(IDENTITY)
    for name, scores in batches:
        ledger.add(name, scores)
    return journal


def test_a_journal_gives_back_every_digit(tmp_path: Path) -> None:
    scores = {3: [-1 / 3, -2e-300], 0: [-0.1, 5e-324]}
    ledger = written(tmp_path, ("one", scores), ("two", {0: [-1.0]})).open(IDENTITY)
    assert ledger.undone("one", [[0, 3], [3, 4]]) == [[3, 4]]
    ledger.exchange()
    assert ledger.scores("two") == [[-1.0]]
    again = written(tmp_path / "next", ("one", {1: [-2.0], 2: [-3.0]}), ("one", scores))
    ledger = again.open(IDENTITY)
    ledger.exchange()
    assert ledger.scores("one") == [scores[0], [-2.0], [-3.0], scores[3]]


@pytest.mark.parametrize("cut", [1, 10, 60, 75])
def test_a_line_torn_by_a_kill_is_no_line_and_spoils_none_that_follow(tmp_path, cut) -> None:
    journal = written(tmp_path, ("one", {0: [-1.0]}), ("one", {1: [-2.0]}))
    file = tmp_path / "0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    ledger = journal.open(IDENTITY)
    for batch in ledger.undone("one", [[0], [1]]):
        ledger.add("one", {index: [-1.0 - index] for index in batch})
    again = journal.open(IDENTITY)
    assert again.undone("one", [[0], [1]]) == []
    again.exchange()
    assert again.scores("one") == [[-1.0], [-2.0]]


def test_scores_of_something_else_are_refused_not_lost(tmp_path: Path) -> None:
    journal = written(tmp_path, ("one", {0: [-1.0]}))
    before = (tmp_path / "0.jsonl").read_bytes()
    with pytest.raises(UsageError, match="unfinished work for other weights; finish it"):
        journal.open(IDENTITY | {"weights": "def"})
    assert (tmp_path / "0.jsonl").read_bytes() == before
    (tmp_path / "0.jsonl").write_bytes(b"{}\nnonsense\n")
    with pytest.raises(UsageError, match=r"0\.jsonl, line 2: is not valid JSON"):
        journal.open(IDENTITY)


def test_nothing_is_kept_of_a_model_without_figures(tmp_path: Path) -> None:
    """So that nothing stands in the way of another precision."""
    broken = LoadedModel(build_llama(layers=2), loaded().tokenizer, "broken")
    broken.model.get_output_embeddings().weight.data.fill_(float("nan"))  # type: ignore[union-attr]
    journal = Journal(tmp_path / "kept")
    with pytest.raises(UsageError, match="not finite"):
        evaluate_questions(broken, QUESTIONS, ledger=journal.open(IDENTITY))
    assert not (tmp_path / "kept").exists()
    journal.open(IDENTITY | {"precision": "float32"})


# The command as it is run, killed for good.


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    rows = [
        {"question": f"Is {i} odd{' or not' * (i % 9)}?", "choices": list("wxyz"), "answer": i % 4}
        for i in range(240)
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "forget.txt").write_text("mumps")
    (folder / "control.txt").write_text("spoon")
    (folder / "text.txt").write_text("The cat sees a small bird in the tree. " * 50)
    (folder / "model").symlink_to(tiny_model_folder)
    return folder


OPTIONS = ["--questions", "q.jsonl", "--perturb", "forget.txt", "--control", "control.txt"]
EVALUATE = ["-m", "defuse", "evaluate", "model", *OPTIONS, "--text", "text.txt", "--device", "cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def start(workplace: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, *arguments],
        cwd=workplace,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workplace: Path, *arguments: str) -> str:
    with start(workplace, *arguments) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def run(workplace: Path, *arguments: str) -> int:
    """The command within this process, which is quicker."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(workplace)
        patched.setattr(sys, "argv", ["defuse", *EVALUATE[2:], *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return int(left.value.code or 0)


def kill_after(workplace: Path, lines: int, *arguments: str, out: str) -> None:
    """SIGKILL the command, with all it started, once that many batches are kept."""
    with start(workplace, *arguments) as process:
        while process.poll() is None:
            kept = (workplace / f"{out}.partial").glob("*/*.jsonl")
            if sum(file.read_bytes().count(b"\n") for file in kept) > lines:
                break
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[0]
        parent = psutil.Process(process.pid)
        everyone = [parent, *parent.children(recursive=True)]
        for each in everyone:
            each.kill()
        psutil.wait_procs(everyone, timeout=10)


def result(workplace: Path, name: str) -> Mapping[str, Any]:
    found = json.loads((workplace / name).read_text())
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> Mapping[str, Any]:
    assert run(workplace, "--out", "whole.json") == 0
    assert not (workplace / "whole.json.partial").exists()
    return result(workplace, "whole.json")


def test_killed_and_resumed_by_two_processes_the_result_is_the_same(
    workplace: Path, undisturbed: Mapping[str, Any]
) -> None:
    command = [*EVALUATE, "--out", "out.json"]
    kill_after(workplace, 7, *command, out="out.json")
    assert not (workplace / "out.json").exists()
    (kept,) = (workplace / "out.json.partial").glob("model-*/0.jsonl")
    with kept.open("a") as file:
        file.write('{"of": "ab')
    said = finish(workplace, *TORCHRUN, "2", *command)
    assert said.count("written: out.json") == 1
    assert result(workplace, "out.json") == undisturbed
    assert not (workplace / "out.json.partial").exists()


@pytest.mark.slow
def test_two_processes_killed_are_resumed_by_one(
    workplace: Path, undisturbed: Mapping[str, Any]
) -> None:
    command = [*EVALUATE, "--out", "two.json"]
    kill_after(workplace, 8, *TORCHRUN, "2", *command, out="two.json")
    kept = (workplace / "two.json.partial").glob("model-*/*")
    assert {file.name for file in kept} == {"0.jsonl", "1.jsonl"}
    assert run(workplace, "--out", "two.json") == 0
    assert result(workplace, "two.json") == undisturbed


@pytest.mark.slow
def test_killed_ten_times_over(workplace: Path, undisturbed: Mapping[str, Any]) -> None:
    command = [*EVALUATE, "--out", "ten.json"]
    for number in range(10):
        kill_after(workplace, 5 * number, *command, out="ten.json")
    assert run(workplace, "--out", "ten.json") == 0
    assert result(workplace, "ten.json") == undisturbed


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(workplace: Path) -> None:
    script = """
import torch
from defuse.evaluate import evaluate_questions
from defuse.evaluate.ledger import Ledger
from defuse.models import load_model
from defuse.processes import join_processes
from defuse.questions import load_questions

processes = join_processes(torch.device("cpu"))

def keep(name, scores):
    if not processes.is_first:
        raise ZeroDivisionError

ledger = Ledger(keep=keep, processes=processes)
evaluate_questions(load_model("model"), load_questions("q.jsonl"), ledger=ledger)
"""
    (workplace / "work.py").write_text(script)
    with start(workplace, *TORCHRUN, "2", "work.py") as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "ZeroDivisionError" in said


def test_a_second_process_on_the_same_output_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(workplace / "used.json.partial/lock", "out", "used.json"):
        assert run(workplace, "--out", "used.json") == 2
    assert "out: used.json is in use by another process" in capsys.readouterr().err
    assert run(workplace, "--out", "used.json", "--limit", "4") == 0
    assert not (workplace / "used.json.partial").exists()


def test_another_order_is_refused_before_the_weights_are_read_and_loses_nothing(
    workplace: Path,
    undisturbed: Mapping[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("defuse.evaluate.job.perplexity", stop)
        assert run(workplace, "--out", "order.json") == 130
    monkeypatch.setattr("defuse.evaluate.job.load_model", None)
    assert run(workplace, "--out", "order.json", "--limit", "100") == 2
    said = capsys.readouterr().err
    assert "order.json.partial" in said
    assert "keeps unfinished work for other questions" in said
    monkeypatch.undo()
    monkeypatch.setattr("defuse.evaluate.scorer._score_batch", only_the_text)
    assert run(workplace, "--out", "order.json") == 0
    assert result(workplace, "order.json") == undisturbed


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def only_the_text(decoder: Decoder, trees: Sequence[TokenTree], *more: Any) -> list[float]:
    """Questions have twelve requests in a row, the text's windows one."""
    assert {len(tree.targets) for tree in trees} == {1}
    return score_batch(decoder, trees, *more)
