"""Benchmarks of other than four choices are asked as lm-evaluation-harness asks them."""

import json
import re
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from benchmarks import lm_eval_reference as reference
from datasets import Dataset
from lm_eval.tasks._yaml_loader import load_yaml

from defuse.evaluate import evaluate_questions
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Columns, ask, few_shot_part, load_questions
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.benchmark_files import write_card

TASKS = Path(lm_eval.tasks.__file__).parent
HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
Row = dict[str, Any]


def arc_rows() -> list[Row]:
    """Three to five choices; labels are letters or digits from 1."""
    rows = []
    for i in range(6):
        count = 3 + i % 3
        labels = list("ABCDE" if i % 2 else "12345")[:count]
        texts = [f"the tree {j} sees a bird" for j in range(count)]
        choices = {"text": texts, "label": labels}
        row = {"id": f"r{i}", "question": f"What does cat {i} see?", "choices": choices}
        rows.append(row | {"answerKey": labels[i % count]})
    return rows


def truthfulqa_rows() -> list[Row]:
    """The right answer comes first, as in the hub's dataset."""
    rows = []
    for i in range(4):
        count = 2 + 3 * i
        targets = {
            "choices": [f"tree {j}" for j in range(count)],
            "labels": [1] + [0] * (count - 1),
        }
        rows.append({"question": f"Where is cat {i}?", "mc1_targets": targets})
    return rows


CASES = {
    "arc": ("arc/arc_easy.yaml", "easy", arc_rows(), "ARC-Easy-test.jsonl", "test"),
    "truthfulqa": (
        "truthfulqa/truthfulqa_mc1.yaml",
        "mc1",
        truthfulqa_rows(),
        "multiple_choice.jsonl",
        "validation",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_prompts_log_probabilities_and_choices_equal_lm_evals(tmp_path: Path, name: str) -> None:
    file, subject, rows, path, split = CASES[name]
    suite = SUITES[name]
    task = load_yaml(TASKS / file, resolve_func=False)
    assert (task["dataset_path"], task[f"{split}_split"]) == (suite.hub, suite.split)
    (tmp_path / path).write_text("\n".join(map(json.dumps, rows)))
    (part,) = load_parts(suite.only([subject]), str(tmp_path))
    assert part.settings.score == "cloze"
    marked = Dataset.from_list(
        [row | {"answer": q.answer} for row, q in zip(rows, part.questions, strict=True)]
    )
    loaded = LoadedModel(build_llama(layers=2), build_tokenizer(), "tiny")
    expected = reference.run_task(
        reference.shipped_task(file, marked), loaded.model, loaded.tokenizer
    )
    assert [ask(q, "cloze") for q in part.questions] == expected.prompts
    answers = evaluate_questions(loaded, part.questions, part.settings).answers[ORIGINAL]
    for answer, logprobs in zip(answers, expected.logprobs, strict=True):
        ours = torch.tensor(answer.logprobs, dtype=torch.float64)
        torch.testing.assert_close(ours, torch.tensor(logprobs).double(), rtol=0, atol=1e-4)
    assert [answer.choice for answer in answers] == expected.choices
    assert [answer.choice_norm for answer in answers] == expected.choices_norm


def test_labels_of_letters_and_of_digits_name_the_same_answers(tmp_path: Path) -> None:
    (tmp_path / "ARC-Easy-test.jsonl").write_text("\n".join(map(json.dumps, arc_rows())))
    (tmp_path / "ARC-Easy-train.jsonl").write_text("\n".join(map(json.dumps, arc_rows()[:1])))
    (part,) = load_parts(SUITES["arc"].only(["easy"]), str(tmp_path), Asking(few_shot=1))
    assert [(len(q.choices), q.answer) for q in part.questions] == [
        (3, 0), (4, 1), (5, 2), (3, 0), (4, 0), (5, 0),
    ]  # fmt: skip
    assert part.settings.subject is None
    assert few_shot_part(None, part.settings.few_shot, "cloze") == (
        "Question: What does cat 0 see?\nAnswer: the tree 0 sees a bird\n\n"
    )
    (letters,) = load_parts(SUITES["arc"].only(["easy"]), str(tmp_path), Asking(score="letters"))
    assert letters.settings.score == "letters"


def test_the_hub_s_nested_columns_are_read(hub: Path) -> None:
    folder = hub / "truthfulqa/truthful_qa"
    (folder / "multiple_choice").mkdir(parents=True)
    file = folder / "multiple_choice/validation-00000-of-00001.parquet"
    Dataset.from_list(truthfulqa_rows()).to_parquet(file)
    write_card(folder, ["multiple_choice"], ["validation"])
    (part,) = load_parts(SUITES["truthfulqa"])
    assert [len(q.choices) for q in part.questions] == [2, 5, 8, 11]
    assert part.questions[0].id == "multiple_choice/0"


BAD = {
    "label": ({"answerKey": "Z"}, "answer is 'Z'; give one of the labels"),
    "no labels": ({"choices": {"text": ["a", "b"]}}, "give one of the labels, None"),
    "no texts": ({"choices": "a"}, "labels, None"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_of_another_layout_are_refused(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(arc_rows()[0] | change))
    with pytest.raises(UsageError, match=message):
        load_questions(str(path), columns=SUITES["arc"].columns)


@pytest.mark.parametrize("labels", [[1, 1, 0], [0, 0, 0], [2, 0, 0], []])
def test_a_list_of_labels_marks_one_right_answer(tmp_path: Path, labels: list[int]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "?", "choices": ["a", "b", "c"], "answer": labels}))
    with pytest.raises(UsageError, match="give one 1, and 0 for the others"):
        load_questions(str(path), columns=Columns())


def test_the_guide_s_benchmark_runs(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/adding-a-benchmark.md").read_text("utf-8")
    (row,) = re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)
    code = "".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S))
    monkeypatch.chdir(tmp_path)
    for name in ("breeds", "care"):
        path = tmp_path / f"data/{name}-test.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(row * 2)
    guide: dict[str, Any] = {"__name__": "guide"}
    exec(compile(code.replace(HUB_MODEL, str(tiny_model_folder)), "guide", "exec"), guide)  # noqa: S102 (our own page)
    assert [len(q.choices) for q in guide["care"].questions] == [3, 3]
    assert guide["breeds"].questions[0].answer == 0
    assert len(guide["found"].answers[ORIGINAL]) == 2
