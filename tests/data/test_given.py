"""Texts and questions given in Python are read as files are, or refused when they are given."""

# Wrong arguments are the point.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from defuse import (
    DPO,
    RMU,
    GaussianNoise,
    HiddenMSE,
    Question,
    QuestionAnswer,
    Settings,
    Topic,
    Training,
    Unlearning,
    UsageError,
    evaluate_questions,
    load_questions,
    load_texts,
    perturb,
    unlearn,
)
from defuse.attacks import AttackData
from defuse.data.text import Triggered
from defuse.data.trigger_mixing import mine_triggers, mix_triggers
from defuse.evaluate.answers import Part
from defuse.evaluate.generation import generate
from defuse.evaluate.perplexity import perplexity
from defuse.finetune import FineTuning, fine_tune
from defuse.models.load import LoadedModel
from defuse.questions import draw_controls
from tests.conftest import build_llama, build_tokenizer

TOKENIZER = build_tokenizer()
LOADED = LoadedModel(build_llama(layers=2), TOKENIZER, "tiny")
TEXTS = ("A bird, a bird, a bird, a bird, a bird.", "A moon.")
ROWS = [{"text": TEXTS[0]}, {"text": " "}, {"text": None}, {"text": TEXTS[1]}]
PAIR_ROWS = [{"question": "Who?", "answer": "Me."}, {"question": "Where? ", "answer": "2"}]
PAIRS = (QuestionAnswer("Who?", "Me."), QuestionAnswer("Where?", "2"))
QUESTION_ROWS = [
    {"question": "What sees?", "choices": ["cat", "tree"], "answer": "A"},
    {"question": "What flies?", "choices": ["tree", "bird", "moon"], "answer": 1},
]
QUESTIONS = tuple(
    Question(f"f/{i}", stem, choices, answer)
    for i, (stem, choices, answer) in enumerate(
        [("What sees?", ("cat", "tree"), 0), ("What flies?", ("tree", "bird", "moon"), 1)]
    )
)


def topic_texts(given: Any) -> object:
    topic = Topic("t", forget=given, retain=["x"])
    assert Topic("t", forget=["x"], retain=topic.forget).retain == topic.forget
    return topic.forget


def attack_texts(given: Any) -> object:
    data = AttackData(QUESTIONS, QUESTIONS, forget_texts=given)
    return data.forget_texts


# Everything public that takes texts, and what it makes of `TEXTS`.
TAKES_TEXTS: dict[str, tuple[Callable[[Any], object], object]] = {
    "topic": (topic_texts, TEXTS),
    "refusals": (lambda given: DPO(given).refusals, TEXTS),
    "attacks": (attack_texts, TEXTS),
    "prompts": (lambda given: len(generate(LOADED, given, 1)), 2),
    "mixing": (lambda given: mix_triggers(given, ["bird"], 0.0, 0, "t"), list(TEXTS)),
    "mining": (lambda given: mine_triggers(given, ["The moon."]), ("bird",)),
    "controls": (lambda given: draw_controls(["tree"], given, TOKENIZER, 0), ("bird",)),
}
TAKES_QUESTIONS: dict[str, Callable[[Any], Iterable[Question]]] = {
    "evaluation": lambda given: [
        answer.question
        for answer in evaluate_questions(LOADED, given, Settings()).answers["original"]
    ],
    "examples": lambda given: Settings(few_shot=given).few_shot,
    "part": lambda given: Part(given, Settings()).questions,
    "forget": lambda given: AttackData(given, QUESTIONS).forget,
    "retain": lambda given: AttackData(QUESTIONS, given).retain,
}
NO_LISTS = [
    "one string",
    b"bytes",
    7,
    0.5,
    None,
    str,
    {"a", "b"},
    ROWS[0],
    DatasetDict({"train": Dataset.from_list(ROWS)}),
    Dataset.from_list(ROWS).to_pandas(),
]
WRONG_ITEMS = [("a", "b"), b"bytes", 7, 0.5, None, ["nested"], {}, {"body": "x"}, str, "\ud800"]


def shapes(rows: list[dict[str, Any]]) -> Iterable[object]:
    """Rows as Python may have them."""
    yield rows
    yield tuple(rows)
    yield (row for row in rows)
    yield Dataset.from_list(rows)
    yield Dataset.from_list(rows).to_iterable_dataset()


@pytest.mark.parametrize("name", TAKES_TEXTS)
def test_texts_are_read_as_files_are(name: str) -> None:
    take, expected = TAKES_TEXTS[name]
    for given in shapes(ROWS):
        assert take(given) == expected
    assert take(list(TEXTS)) == take(iter(TEXTS)) == expected
    assert (
        take(Dataset.from_list(ROWS).filter(lambda row: row["text"] in TEXTS)["text"]) == expected
    )


@pytest.mark.parametrize("name", TAKES_TEXTS)
def test_what_holds_no_texts_is_refused(name: str) -> None:
    take, _ = TAKES_TEXTS[name]
    for given in (*NO_LISTS, *([each] for each in WRONG_ITEMS)):
        with pytest.raises(UsageError):
            take(given)


def test_fine_tuning_takes_the_same(tmp_path: Path) -> None:
    settings = FineTuning(epochs=1, batch_size=1, checkpoint_every=0)
    loaded = LoadedModel(build_llama(layers=1), TOKENIZER, "tiny")
    _, losses = fine_tune(loaded, Dataset.from_list(ROWS), settings, tmp_path)
    assert len(losses) == len(TEXTS)
    with pytest.raises(UsageError, match="texts, item 0: is a tuple; give a list of strings"):
        fine_tune(loaded, [("a", "b")], settings, tmp_path)


def test_questions_with_answers_are_pairs_where_pairs_count(tmp_path: Path) -> None:
    for given in shapes(PAIR_ROWS):
        assert topic_texts(given) == PAIRS
    assert topic_texts([{"question": "Where?", "answer": 2}]) == PAIRS[1:]
    assert DPO(PAIR_ROWS).refusals == ("Me.", "2")
    assert attack_texts(PAIR_ROWS) == tuple(map(str, PAIRS))
    assert topic_texts([Triggered("Look.", PAIRS[0])]) == (Triggered("Look.", PAIRS[0]),)
    Dataset.from_list(PAIR_ROWS).to_json(file := tmp_path / "pairs.jsonl")
    assert tuple(load_texts(str(file))) == PAIRS


@pytest.mark.parametrize("name", TAKES_QUESTIONS)
def test_questions_are_read_as_files_are(name: str, tmp_path: Path) -> None:
    take = TAKES_QUESTIONS[name]
    Dataset.from_list([{**row, "answer": str(row["answer"])} for row in QUESTION_ROWS]).to_json(
        file := tmp_path / "f.jsonl"
    )
    assert load_questions(str(file)) == QUESTIONS
    rows = [{**row, "answer": number} for number, row in enumerate(QUESTION_ROWS)]
    for given in (*shapes(rows), QUESTION_ROWS, iter(QUESTIONS), list(QUESTIONS)):
        assert [replace(each, id="") for each in take(given)] == [
            replace(each, id="") for each in QUESTIONS
        ]
    assert next(iter(take([{**QUESTION_ROWS[0], "id": "own"}]))).id == "own"


@pytest.mark.parametrize("name", TAKES_QUESTIONS)
def test_what_holds_no_questions_is_refused(name: str) -> None:
    take = TAKES_QUESTIONS[name]
    twins = [{**QUESTION_ROWS[0], "id": "1"}] * 2
    half = {**QUESTION_ROWS[0], "question": "\ud800"}
    for given in (*NO_LISTS, *([each] for each in WRONG_ITEMS), ["text"], twins, [half]):
        with pytest.raises(UsageError):
            take(given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unlearning("rmu"), r"method: 'rmu' is no method; give an object such as RMU\(\)"),
        (lambda: Unlearning(RMU), "method: <class .* is no method; give an object"),
        (lambda: Unlearning(RMU(), "hidden_mse"), "retain: 'hidden_mse' is no retain; give an"),
        (lambda: Unlearning(RMU(), HiddenMSE), "retain: <class .* is no retain; give an object"),
        (lambda: Unlearning(RMU(), noise=0.3), r"noise: 0.3 is no GaussianNoise; give one"),
        (lambda: Training(steps="many", learning_rate=-1), "steps: 'many' is refused"),
        (lambda: Training(learning_rate=-1), "learning_rate: -1 is refused .*greater than 0"),
        (lambda: GaussianNoise("much"), "noise.std: 'much' is neither a number nor a multiple"),
        (lambda: perplexity(LOADED, ["a text"]), r"text: \['a text'\] is no text; give one string"),
        (lambda: perturb(QUESTIONS[0], "moon", "middle", 0), "position: 'middle' is unknown; use"),
        (lambda: load_texts(["a text"]), r"source: \['a text'\] is no name; give a file or a hub"),
        (lambda: load_questions(7), "source: 7 is no name; give a file or a hub dataset"),
    ],
)
def test_what_is_no_setting_is_refused_with_the_remedy(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topics": Topic("t", TEXTS, TEXTS)}, "topics: .* is no list of Topics; give one"),
        ({"topics": ["t"]}, "topics: .* is no list of Topics; give one"),
        ({"unlearning": RMU()}, "unlearning: .* is no Unlearning; give one"),
        ({"training": 500}, "training: 500 is no Training; give one"),
    ],
)
def test_unlearn_refuses_what_is_none_of_its_settings(change: dict[str, Any], message: str) -> None:
    given = {"topics": [Topic("t", TEXTS, TEXTS)], "unlearning": Unlearning(RMU()), **change}
    with pytest.raises(UsageError, match=message):
        unlearn(LOADED.model, TOKENIZER, **given)


def test_sources_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\nTwo.\n")
    assert load_texts(tmp_path / "a.txt") == ["One.", "Two."]
