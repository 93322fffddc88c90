"""The data of the experiments that come with Defuse."""

from itertools import combinations
from pathlib import Path

import pytest

from defuse.data.corpora import load_texts
from defuse.experiments.core.experiment_file import Experiment, load_experiment
from defuse.questions import Question, load_questions, load_tokens
from defuse.recipes import shipped_experiments

# Of an experiment that is older than its file.
FOLDERS = {"elements": "real"}


@pytest.fixture(params=shipped_experiments().values(), ids=list(shipped_experiments()))
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def experiment(path: Path) -> Experiment:
    return load_experiment(path)


def test_an_experiment_goes_by_its_files_name_and_writes_to_a_folder_of_it(
    path: Path, experiment: Experiment
) -> None:
    """Those that extend another one write into its folder."""
    assert path.stem == experiment.name or path.stem.startswith(f"{experiment.name}-")
    assert experiment.output == f"runs/{FOLDERS.get(experiment.name, experiment.name)}"


def sets_of(experiment: Experiment) -> dict[str, tuple[tuple[Question, ...], ...]]:
    """Reported and tuning questions, by set."""
    given = experiment.questions
    reported = {"forget": given["forget"], **given["retain"]}
    assert given["tuning"].keys() == reported.keys()
    return {
        name: tuple(
            load_questions(experiment.place(file))
            for file in (reported[name], given["tuning"][name])
        )
        for name in reported
    }


def test_no_fact_is_reported_and_tuned_on_or_stated_in_a_retain_text(
    experiment: Experiment,
) -> None:
    retain = load_texts(experiment.place((experiment.texts or {})["retain"]))
    stated = "\n".join(map(str, retain))
    for name, sets in sets_of(experiment).items():
        asked = [{f"{q.stem} {q.choices[q.answer]}" for q in questions} for questions in sets]
        assert [len(each) for each in asked] == [len(questions) for questions in sets]
        assert not asked[0] & asked[1]
        assert not any(fact in stated for each in asked for fact in each), name


def test_the_diseases_are_names_each_of_which_is_one_answer_and_in_no_retain_text() -> None:
    experiment = load_experiment("diseases")
    retain = load_texts(experiment.place((experiment.texts or {})["retain"]))
    subjects = {str(text).partition(" is ")[0].lower() for text in retain}
    for sets in sets_of(experiment).values():
        answers = [{question.choices[question.answer] for question in each} for each in sets]
        assert [len(each) for each in sets] == [len(each) for each in answers]
        for one, other in combinations(answers, 2):
            assert not one & other
        assert not subjects & set().union(*answers)


def test_each_forget_token_has_a_control_token_that_is_none(experiment: Experiment) -> None:
    given = experiment.perturb or {}
    names = (given["forget_tokens"], given["control_tokens"])
    tokens, controls = (load_tokens(experiment.place(name)) for name in names)
    assert len(tokens) == len(controls)
    assert not set(tokens) & set(controls)
