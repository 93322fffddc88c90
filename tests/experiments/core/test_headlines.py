"""Published conclusions beside an experiment's own figures."""

import json
from pathlib import Path

import pytest
from dev.publish import PUBLISHED
from dev.reproduce_docs import holm

from defuse.experiments.core.defences import make_defences
from defuse.experiments.core.headlines import (
    Headline,
    find_figures,
    headline_sentence,
    headline_table,
    read_headlines,
)
from defuse.experiments.core.metrics import Answers, make_groups
from defuse.few_seeds import SeededMean
from defuse.statistics import Interval
from tests.helpers.answered import HURT, REFERENCE, answers, run

ROOT = Path(__file__).parents[3]
FINISHED = {run("none", seed): {40: HURT} for seed in (1, 2)}
FINISHED |= {run("rna", seed): {40: HURT} for seed in (1, 2)}
ANSWERS = Answers(FINISHED, REFERENCE, answers(forget=3))
GROUPS, DEFENCES = make_groups(ANSWERS), make_defences(ANSWERS)
HARMED = Headline("it is harmed", run().group, "vulnerability", "above", position="before")


def test_each_kind_of_figure_is_found() -> None:
    rna = run("rna").group
    found = {
        figure: Headline("x", rna, figure, "above", position="before").find(GROUPS, DEFENCES)
        for figure in ("forget", "retain", "after", "vulnerability", "any_sentence", "matched")
    }
    values = {name: round(each.value, 2) for name, each in found.items() if each is not None}
    assert values == {
        "forget": 0.3,
        "retain": 0.8,
        "after": 0.2,
        "vulnerability": 0.4,
        "any_sentence": 0.1,
        "matched": 0.0,
    }
    assert Headline("x", "not there", "forget", "above").find(GROUPS, DEFENCES) is None


@pytest.mark.parametrize(
    ("holds", "than", "held"),
    [
        ("above", 0.1, True), ("above", 0.2, False), ("below", 0.4, True), ("below", 0.3, False),
        ("around", 0.25, True), ("around", 0.5, False),
    ],
)  # fmt: skip
def test_a_conclusion_holds_by_its_interval(holds, than: float, held: bool) -> None:
    assert Headline("x", "g", "forget", holds, than).is_held(Interval(0.25, 0.2, 0.3)) == held


def test_the_table_has_both_figures_and_the_sentence_names_what_does_not_hold() -> None:
    published = SeededMean(0.4, 0.3, 0.5, error=0.05, freedom=10)
    wrong = Headline("it forgets nothing", run().group, "forget", "above", than=0.9)
    headlines = [
        Headline(HARMED.says, HARMED.group, "vulnerability", "around", 0.4, "before", published),
        wrong,
        Headline("of runs that were left out", "not there", "forget", "above"),
    ]
    found = find_figures(headlines, GROUPS, DEFENCES)
    table = headline_table(found)
    assert [row[0] for row in table.rows] == ["it is harmed", "it forgets nothing"]
    assert table.rows[0][1] == "0.40 [0.30, 0.50]"
    assert [row[3] for row in table.rows] == ["yes", "no"]
    said = headline_sentence(found)
    assert said == (
        "1 of 2 published conclusions hold on this machine. Not here: it forgets nothing."
    )


def test_p_values_are_corrected_as_holm_does() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_conclusion_holds_by_its_own_figure(name: str) -> None:
    for each in read_headlines(PUBLISHED[name][1]):
        if each.published is not None:
            assert each.is_held(each.published), each.says


def test_the_main_figures_of_the_readme_are_those_of_the_published_headlines() -> None:
    pages = "".join((ROOT / page).read_text("utf-8") for page in ("README.md", "docs/results.md"))
    for name, (_, path) in PUBLISHED.items():
        for each in json.loads(path.read_text("utf-8"))["headlines"]:
            if published := each.get("published"):
                shown = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**published)
                assert shown.replace("-0.00", "0.00") in pages, (name, each["says"])
