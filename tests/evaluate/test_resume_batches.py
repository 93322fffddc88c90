"""Scores that are known are not scored again, and processes share the rest: same digits."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defuse.evaluate import Evaluation, Settings, evaluate_questions
from defuse.evaluate.answers import Part
from defuse.evaluate.evaluate import evaluate_parts
from defuse.evaluate.resume import BatchScores, Scores, open_scores
from defuse.models.load import LoadedModel
from defuse.questions import Perturbation, Question
from defuse.utils.distributed import Processes
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT, Progress
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.counted import Counted

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


def ask(scores: BatchScores, progress: Progress = SILENT) -> Evaluation:
    """About two questions a batch."""
    asked = (QUESTIONS, Settings(token_budget=150), PERTURBATION)
    return evaluate_questions(loaded(), *asked, progress=progress, scores=scores)


def logprobs(evaluation: Evaluation) -> list[tuple[float, ...]]:
    return [o.logprobs for answers in evaluation.answers.values() for o in answers]


def collecting(kept: Kept, **given: Any) -> BatchScores:
    return BatchScores(keep=lambda name, scores: kept.append((name, scores)), **given)


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
        return logprobs(evaluate_parts(loaded(), parts, scores=BatchScores(processes=processes)))

    assert in_threads(2, together) == [alone, alone]


def test_lists_of_one_batch_each_are_dealt_out_too() -> None:
    both = [BatchScores(processes=Processes(rank, 2)) for rank in range(2)]
    shares = [[[*scores.share([[number]])] for number in range(4)] for scores in both]
    assert [[len(share) for share in each] for each in shares] == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_progress_counts_what_is_known_and_what_others_do(whole) -> None:
    batches, _ = whole

    def told(processes: Processes) -> int:
        progress = Counted()
        ask(BatchScores(known(batches[:2]), processes=processes), progress)
        return sum(progress.counts)

    assert in_threads(2, told) == [len(QUESTIONS)] * 2


def written(folder: Path, *batches: tuple[str, Scores]) -> Path:
    scores = open_scores(folder, IDENTITY)
    for name, batch in batches:
        scores.add(name, batch)
    return folder


def test_the_log_gives_back_every_digit(tmp_path: Path) -> None:
    batch = {3: [-1 / 3, -2e-300], 0: [-0.1, 5e-324]}
    found = open_scores(written(tmp_path, ("one", batch), ("two", {0: [-1.0]})), IDENTITY)
    assert found.missing("one", [[0, 3], [3, 4]]) == [[3, 4]]
    found.exchange()
    assert found.of("two") == [[-1.0]]
    again = written(tmp_path / "next", ("one", {1: [-2.0], 2: [-3.0]}), ("one", batch))
    found = open_scores(again, IDENTITY)
    found.exchange()
    assert found.of("one") == [batch[0], [-2.0], [-3.0], batch[3]]


@pytest.mark.parametrize("cut", [1, 10, 60, 75])
def test_a_line_torn_by_a_kill_is_no_line_and_spoils_none_that_follow(tmp_path, cut) -> None:
    written(tmp_path, ("one", {0: [-1.0]}), ("one", {1: [-2.0]}))
    file = tmp_path / "0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    found = open_scores(tmp_path, IDENTITY)
    for batch in found.missing("one", [[0], [1]]):
        found.add("one", {index: [-1.0 - index] for index in batch})
    again = open_scores(tmp_path, IDENTITY)
    assert again.missing("one", [[0], [1]]) == []
    again.exchange()
    assert again.of("one") == [[-1.0], [-2.0]]


def test_scores_of_something_else_are_refused_not_lost(tmp_path: Path) -> None:
    written(tmp_path, ("one", {0: [-1.0]}))
    before = (tmp_path / "0.jsonl").read_bytes()
    with pytest.raises(UsageError, match="unfinished work for other weights; finish it"):
        open_scores(tmp_path, IDENTITY | {"weights": "def"})
    assert (tmp_path / "0.jsonl").read_bytes() == before


def damaged(lines: list[str]) -> dict[str, tuple[list[str], str]]:
    """Other lines of a log, and what each is refused with."""
    head, batch = lines
    return {
        "no JSON": ([head, "nonsense"], r"0\.jsonl, line 2: is not valid JSON"),
        "null": ([head, batch, "null"], r"0\.jsonl, line 3: is not a JSON object"),
        "another object": ([head, '{"of": "one"}'], r"0\.jsonl, line 2: is no result"),
        "another digit": ([head, batch.replace("-1.5", "-1.25")], "line 2: is damaged"),
        "no number": ([head, batch.replace("-1.5", "NaN")], "line 2: is damaged"),
        "a list": (["[]", batch], r"0\.jsonl, line 1: is not a JSON object"),
    }


@pytest.mark.parametrize("case", damaged(["", ""]))
def test_a_damaged_line_is_named_not_used(tmp_path: Path, case: str) -> None:
    file = written(tmp_path, ("one", {0: [-1.5]})) / "0.jsonl"
    lines, message = damaged(file.read_text().splitlines())[case]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=message):
        open_scores(tmp_path, IDENTITY)


def test_nothing_is_kept_of_a_model_without_figures(tmp_path: Path) -> None:
    """So that nothing stands in the way of another precision."""
    broken = LoadedModel(build_llama(layers=2), loaded().tokenizer, "broken")
    broken.model.get_output_embeddings().weight.data.fill_(float("nan"))  # type: ignore[union-attr]
    kept = tmp_path / "kept"
    with pytest.raises(UsageError, match="not finite"):
        evaluate_questions(broken, QUESTIONS, scores=open_scores(kept, IDENTITY))
    assert not kept.exists()
    open_scores(kept, IDENTITY | {"precision": "float32"})
