"""The data of the experiments that come with Defuse."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from defuse.data.corpora import load_texts
from defuse.questions import load_questions, load_tokens
from defuse.recipes import shipped_experiments


@pytest.fixture(params=shipped_experiments().values(), ids=list(shipped_experiments()))
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def fields(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_an_experiment_goes_by_its_files_name_and_writes_to_a_folder_of_it(
    path: Path, fields: dict[str, Any]
) -> None:
    assert (fields["name"], fields["output"]) == (path.stem, f"runs/{path.stem}")


def test_reported_and_tuning_questions_share_no_answer_and_no_text(
    path: Path, fields: dict[str, Any]
) -> None:
    given = fields["questions"]
    reported = {"forget": given["forget"], **given["retain"]}
    assert given["tuning"].keys() == reported.keys()
    for name in reported:
        files = (reported[name], given["tuning"][name])
        sets = [load_questions(str(path.parent / file)) for file in files]
        answers = [{question.choices[question.answer] for question in each} for each in sets]
        assert [len(each) for each in sets] == [len(each) for each in answers]
        for one, other in combinations(answers, 2):
            assert not one & other
        retain = [str(text) for text in load_texts(str(path.parent / fields["texts"]["retain"]))]
        subjects = {text.partition(" is ")[0].lower() for text in retain}
        assert not subjects & set().union(*answers)


def test_each_forget_token_has_a_control_token_that_is_none(
    path: Path, fields: dict[str, Any]
) -> None:
    names = (fields["perturb"]["forget_tokens"], fields["perturb"]["control_tokens"])
    tokens, controls = (load_tokens(str(path.parent / name)) for name in names)
    assert len(tokens) == len(controls)
    assert not set(tokens) & set(controls)
