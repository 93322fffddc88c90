"""Results of attacks: effects with their tests, the report, and files of version 0.1.0."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from defuse.attacks import AttackData, Condition, Cost, Result
from defuse.attacks.comparison import defence, overview
from defuse.attacks.registry import make_configs
from defuse.attacks.report import cautions, in_turn, make_report, markdown
from defuse.attacks.results import condition, effect, examples
from defuse.attacks.run import Request, check, check_folder, read_results, run
from defuse.evaluate import MCAnswer, compare, wilson
from defuse.models.load import load_model
from defuse.questions import Question
from defuse.report import render
from defuse.utils.errors import UsageError
from defuse.utils.provenance import fingerprint
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.attacked import DATA, QUESTIONS, WORDS

OLD = Path(__file__).parent / "results_0_1_0"


def outcome(asked: Question, choice: int) -> MCAnswer:
    return MCAnswer(asked, tuple(-1.0 if i == choice else -3.0 for i in range(4)), truncated=False)


def test_an_effect_is_after_minus_before_on_the_same_questions() -> None:
    before = [outcome(q, 0) for q in QUESTIONS]
    after = [outcome(q, q.answer) for q in QUESTIONS]
    found = effect(before, after, seed=0)
    assert (found.before.n, found.after.accuracy) == (8, wilson(8, 8))
    assert found.accuracy == compare([True] * 8, [q.answer == 0 for q in QUESTIONS])
    gained = 2.0 * 6 / 8  # a wrong answer's log-probability rises by 2 nats
    assert math.isclose(found.logprob.value, gained, rel_tol=1e-9)
    changed = list(examples("made up", {"forget": before}, {"forget": after}))
    assert [(e.before, e.after, e.right) for e in changed][:1] == [("bird", "tree", "tree")]
    assert len(changed) == 5  # no more than that, of six


def right_in(count: int) -> list[MCAnswer]:
    """The first `count` of 8 questions answered right."""
    choices = (q.answer if i < count else (q.answer + 1) % 4 for i, q in enumerate(QUESTIONS))
    return [outcome(q, choice) for q, choice in zip(QUESTIONS, choices, strict=True)]


def fixed(name: str, shares: dict[str, int], *, headline: bool = True) -> Condition:
    """A condition after which so many of 8 questions are answered right, of 4 before."""
    after = {each: right_in(count) for each, count in shares.items()}
    before = dict.fromkeys(after, right_in(4))
    return condition(name, before, after, seed=0, headline=headline)


def test_models_are_tabled_side_by_side_and_a_defence_is_compared_question_by_question() -> None:
    layer = fixed("lens, layer 1", {"forget": 8}, headline=False)
    results = {
        name: {
            "quantise": Result("quantise", {}, [fixed("4 bits", {"forget": n})], Cost()),
            "lens": Result("lens", {}, [layer], Cost()),
        }
        for name, n in {"plain": 8, "defended": 2}.items()
    }
    forget, retain = overview(results)
    # A single layer may be the best of many by luck: it is no headline.
    assert [row[0] for row in forget.rows] == ["quantise: 4 bits"]
    assert [cell[:11] for cell in forget.rows[0][2:]] == ["0.50 → 1.00", "0.50 → 0.25"]
    assert not retain.rows
    (row,) = defence(results, [("plain", "defended")]).rows
    assert (row[:4], row[4][:5], row[5]) == (
        ["defended", "quantise: 4 bits", "forget", "8"],
        "-0.75",
        "0.031",
    )


def test_many_models_are_tabled_below_one_another_in_a_table_for_each_attack() -> None:
    def results(name: str, count: int) -> Result:
        return Result(name, {}, [fixed("4 bits", {"forget": count})], Cost())

    many = {
        f"model {n}": {attack: results(attack, n) for attack in ("quantise", "prune")}
        for n in range(9)
    }
    del many["model 3"]["prune"]
    quantised, pruned = overview(many)
    assert quantised.head == ["", "quantise: 4 bits (n = 8)"]
    assert [row[0] for row in quantised.rows] == [*many]
    assert [row[1][:11] for row in quantised.rows][::8] == ["0.50 → 0.00", "0.50 → 1.00"]
    assert pruned.head == ["", "prune: 4 bits (n = 8)"]
    assert [row[0] for row in pruned.rows] == [name for name in many if name != "model 3"]


def test_examples_are_shown_in_turn_with_controls_last() -> None:
    asked = {"forget": [outcome(q, 0) for q in QUESTIONS]}
    changed = {"forget": [outcome(q, 1) for q in QUESTIONS]}
    names = {"drawn": True, "a": False, "b": False}
    conditions = [
        condition(name, asked, changed, 0, is_control=is_control)
        for name, is_control in names.items()
    ]
    shown = [each for name in names for each in examples(name, asked, changed)]
    result = Result("quantise", {}, conditions, Cost(), shown)
    assert [each.condition for each in in_turn(result)][:4] == ["a", "b", "a", "b"]
    assert in_turn(result)[-1].condition == "drawn"


def test_letters_at_chance_and_controls_that_harm_are_said() -> None:
    """4 of 8 right are not significantly more than a guess among four; 0 of 8 after are fewer."""
    data = AttackData(QUESTIONS, QUESTIONS)
    random = replace(fixed("random word", {"retain": 0}), is_control=True)
    harmless = replace(fixed("random unit", {"retain": 4}), is_control=True)
    results = {
        "triggers": Result("triggers", {}, [fixed("word", {"retain": 0}), random], Cost()),
        "prune": Result("prune", {}, [fixed("5%", {"retain": 0}), harmless], Cost()),
    }
    chance, harm = cautions(results, data)
    assert "answers 0.50 of the retain questions, no better than chance" in chance
    assert "triggers: " in harm
    assert "(random word)" in harm
    for text in (markdown(results, data), render(make_report("m", results, data))):
        assert "no better than chance" in text
        assert "cannot be read as the attack" in text
    cloze = replace(data, settings=replace(data.settings, score="cloze"))
    assert list(cautions(results, cloze)) == [harm]


def test_the_report_escapes_what_data_sets_hold() -> None:
    evil = Question("q", "<script>alert(1)</script>", WORDS, 0)
    before, after = {"forget": [outcome(evil, 0)]}, {"forget": [outcome(evil, 1)]}
    shown = list(examples("x", before, after))
    result = Result("quantise", {}, [condition("x", before, after, 0)], Cost(), shown)
    page = render(make_report("m", {"quantise": result}))
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_a_result_comes_back_from_json_as_it_was() -> None:
    found = [fixed("4 bits", {"forget": 8, "retain": 3}, headline=False)]
    result = Result("quantise", {"bits": [4]}, found, Cost(1.0, 2, 3, 4))
    read = Result.from_json(json.loads(json.dumps(result.as_json())))
    assert read.as_json() == json.loads(json.dumps(result.as_json()))
    assert read.conditions[0] == result.conditions[0]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with results as version 0.1.0 wrote them."""
    return Path(shutil.copytree(OLD, tmp_path / "out"))


def names(conditions: Sequence[Condition], field: str) -> list[str]:
    return [each.name for each in conditions if getattr(each, field)]


def test_results_of_version_0_1_0_are_read_with_their_headlines_and_controls(old: Path) -> None:
    found = read_results(old)
    assert {name: result.attack for name, result in found.items()} == {
        each: each for each in ("quantise", "orthogonalise", "relearn")
    }
    assert names(found["quantise"].conditions, "headline") == ["4 bits"]
    drawn = ["all, random direction"]
    of_all = ["all", *drawn, "each, chosen layer"]
    assert names(found["orthogonalise"].conditions, "headline") == of_all
    assert names(found["orthogonalise"].conditions, "is_control") == drawn
    assert names(found["relearn"].conditions, "headline") == ["forget, 1 texts"]
    assert found["quantise"].conditions[0].effects["forget"].before.n == 4


def request(old: Path, *overrides: str, data: AttackData = DATA) -> Request:
    texts = ("The cat sees a bird.", "The moon is in the tree."), ("The moon is a cat.",)
    return Request(
        str(old.parent / "model"),
        old,
        make_configs(["quantise"], overrides or ["quantise.bits=[4]"]),
        replace(data, forget_texts=texts[0], retain_texts=texts[1]),
        device="cpu",
        dtype="float32",
    )


def test_results_of_version_0_1_0_count_as_finished_or_are_refused(old: Path) -> None:
    build_llama(layers=2).save_pretrained(old.parent / "model")
    build_tokenizer().save_pretrained(old.parent / "model")
    weights = fingerprint(load_model(str(old.parent / "model"), device="cpu").model)
    for each in old.glob("*.json"):  # a processor's draws may differ from another's in the last bit
        document = json.loads(each.read_text())
        document["about"]["weights"] = weights
        each.write_text(json.dumps(document))
    written = (old / "quantise.json").read_bytes()
    (result,) = run(check(request(old)))
    assert result == read_results(old)["quantise"]
    assert (old / "quantise.json").read_bytes() == written
    fewer = replace(DATA, forget=DATA.forget[:3])
    for asked, said in (
        (request(old, "quantise.bits=[8]"), "settings"),
        (request(old, data=fewer), "questions"),
    ):
        with pytest.raises(UsageError, match=rf"quantise\.json belongs to other {said};"):
            check_folder(asked)
    (old / "notes").mkdir()
    (old / "notes" / "quantise.jsonl").write_text("{}\n")  # 0.1.0 left it there
    check_folder(request(old))
    (old / "quantise.json").unlink()
    with pytest.raises(UsageError, match=r"unfinished work of version 0\.1\.0, which this version"):
        check(request(old))
