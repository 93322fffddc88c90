"""What all attacks share: notes that resume, effects with their tests, and `defuse attack`."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from defuse.attacks import Cost, Material, Notes, open_notes
from defuse.attacks import quantise as quantisation
from defuse.attacks.registry import KINDS, configs, possible
from defuse.attacks.report import in_turn, make_page
from defuse.attacks.results import Condition, Result, condition, effect, examples
from defuse.attacks.run import Order, check, read_results, run
from defuse.cli import app
from defuse.evaluate import MCAnswer, compare, wilson
from defuse.experiments.core.attack_tables import defence, overview
from defuse.questions import Question
from defuse.report import render
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer

WORDS = ("bird", "tree", "moon", "cat")


def question(number: int, answer: int = 0) -> Question:
    return Question(f"q/{number}", f"What does the cat see, {number}?", WORDS, answer)


def outcome(asked: Question, choice: int) -> MCAnswer:
    return MCAnswer(asked, tuple(-1.0 if i == choice else -3.0 for i in range(4)), truncated=False)


QUESTIONS = tuple(question(i, i % 4) for i in range(8))
MATERIAL = Material(QUESTIONS[:4], QUESTIONS[4:])


def test_a_set_of_questions_without_any_is_refused():
    with pytest.raises(UsageError, match="retain: there are no questions"):
        Material(QUESTIONS, ())


def test_an_effect_is_after_minus_before_on_the_same_questions():
    before = [outcome(q, 0) for q in QUESTIONS]
    after = [outcome(q, q.answer) for q in QUESTIONS]
    found = effect(before, after, seed=0)
    assert (found.before.n, found.after.accuracy) == (8, wilson(8, 8))
    assert found.accuracy == compare([True] * 8, [q.answer == 0 for q in QUESTIONS])
    gained = 2.0 * 6 / 8  # a wrong answer's log-probability rises by 2 nats
    assert math.isclose(found.logprob.value, gained, rel_tol=1e-9)
    turned = list(examples("made up", {"forget": before}, {"forget": after}))
    assert [(e.before, e.after, e.right) for e in turned][:1] == [("bird", "tree", "tree")]
    assert len(turned) == 5  # no more than that, of six


def test_notes_find_once_and_count_what_it_cost(tmp_path):
    model, found = build_llama(layers=2), []
    ids = torch.ones(3, 5, dtype=torch.long)

    def find() -> tuple[int, ...]:
        found.append(1)
        model(ids).logits.sum().backward()
        return (1, 2)

    for _ in range(2):
        notes = open_notes(tmp_path / "notes.jsonl", {"of": "this"})
        with notes.watching(model):
            assert notes.once("piece", find) == [1, 2] == notes.once("piece", find)
        assert (notes.cost.forward, notes.cost.backward, notes.cost.tokens) == (3, 3, 15)
        assert notes.cost.seconds > 0
    assert found == [1]
    assert not model.model.layers[0]._forward_hooks


def test_notes_of_something_else_are_refused_and_a_torn_line_is_forgotten(tmp_path):
    path = tmp_path / "notes.jsonl"
    notes = open_notes(path, {"settings": 1})
    assert [notes.once(name, lambda: name) for name in "ab"] == ["a", "b"]  # noqa: B023
    with pytest.raises(UsageError, match="other settings"):
        open_notes(path, {"settings": 2})
    path.write_bytes(path.read_bytes()[:-5])
    again = open_notes(path, {"settings": 1})
    assert [again.once(name, lambda: "new") for name in "abc"] == ["a", "new", "new"]
    assert [json.loads(line) for line in path.read_text().splitlines()][2]["value"] == "new"


def test_costs_add_up():
    assert Cost(1.0, 2, 3, 4) + Cost(1.0, 1, 1, 1) - Cost(0.5) == Cost(1.5, 3, 4, 5)


def test_settings_are_read_strictly():
    assert configs(["quantise"], ["quantise.bits=[3]"], seed=5) == {
        "quantise": quantisation.Quantisation(bits=(3,), seed=5)
    }
    for override, said in {
        "quantise.bits=4": "quantise.bits: 4 is refused",
        "quantise.bits=[1]": "quantise.bits: 1 is no width",
        "quantise.bit=[4]": "quantise: has no field 'bit'",
        "lens.x=1": "'lens' is none of the attacks to run",
    }.items():
        with pytest.raises(UsageError, match=said.replace("[", r"\[")):
            configs(["quantise"], [override])
    with pytest.raises(UsageError, match="'magic' is unknown; use one of"):
        configs(["magic"])


def right_in(count: int) -> list[MCAnswer]:
    """The first `count` of 8 questions answered rightly."""
    choices = (q.answer if i < count else (q.answer + 1) % 4 for i, q in enumerate(QUESTIONS))
    return [outcome(q, choice) for q, choice in zip(QUESTIONS, choices, strict=True)]


def fixed(name: str, shares: dict[str, int]) -> Condition:
    """A condition after which so many of 8 questions are answered rightly, of 4 before."""
    after = {each: right_in(count) for each, count in shares.items()}
    return condition(name, dict.fromkeys(after, right_in(4)), after, seed=0)


def test_models_stand_side_by_side_and_a_defence_is_compared_question_by_question():
    results = {
        name: {
            "quantise": Result("quantise", {}, [fixed("4 bits", {"forget": n})], Cost()),
            "lens": Result("lens", {}, [fixed("lens, layer 1", {"forget": 8})], Cost()),
        }
        for name, n in {"plain": 8, "defended": 2}.items()
    }
    forget, retain = overview(results)
    # A single layer may be the best of many by luck, so it stands in no table of models.
    assert [row[0] for row in forget.rows] == ["quantise: 4 bits"]
    assert [cell[:11] for cell in forget.rows[0][2:]] == ["0.50 → 1.00", "0.50 → 0.25"]
    assert not retain.rows
    (row,) = defence(results, [("plain", "defended")]).rows
    assert (row[:4], row[4][:5], row[5]) == (
        ["defended", "quantise: 4 bits", "forget", "8"],
        "-0.75",
        "0.031",
    )


def files(folder: Path) -> dict[str, str]:
    paths = {}
    for name, questions in MATERIAL.sets.items():
        rows = [
            {"id": q.id, "question": q.stem, "choices": q.choices, "answer": q.answer}
            for q in questions
        ]
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return paths


def command(model: Path, folder: Path, *more: str) -> list[str]:
    sets = files(folder)
    given = ["--forget", sets["forget"], "--retain", sets["retain"], "--out", str(folder / "out")]
    return ["attack", str(model), *given, "--kind", "quantise", "--device", "cpu", *more]


def test_the_command_writes_results_tables_and_page_and_knows_them_again(
    tiny_model_folder, tmp_path
):
    runner, out = CliRunner(), tmp_path / "out"
    first = runner.invoke(app, command(tiny_model_folder, tmp_path), catch_exceptions=False)
    assert first.exit_code == 0, first.output
    result = read_results(out)["quantise"]
    assert [each.name for each in result.conditions] == ["8 bits", "4 bits"]
    assert {each.effects["forget"].before.n for each in result.conditions} == {4}
    assert "| 4 bits | retain | 4 |" in (out / "attacks.md").read_text()
    assert "<table>" in (out / "report.html").read_text()
    written = (out / "quantise.json").stat().st_mtime_ns
    assert runner.invoke(app, command(tiny_model_folder, tmp_path)).exit_code == 0
    assert (out / "quantise.json").stat().st_mtime_ns == written
    page = (out / "report.html").stat().st_mtime_ns
    other = tmp_path / "other"
    build_llama(seed=1).save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    for model, more, said in (
        (tiny_model_folder, ["--set", "quantise.bits=[3]"], "settings"),
        (other, [], "weights"),
    ):
        given = command(model, tmp_path, *more)
        said = f"an attack with other {said}; name another folder, or delete it and notes/quant"
        with pytest.raises(UsageError, match=said):
            runner.invoke(app, given, catch_exceptions=False)
    assert (out / "report.html").stat().st_mtime_ns == page  # of the model that it is about


def order(model: Path, out: Path, kinds: list[str], **more: object) -> Order:
    fields: dict = {"device": "cpu", "dtype": "float32", "material": MATERIAL, **more}
    return Order(str(model), out, configs(kinds), **fields)


def test_what_an_attack_cannot_do_without_is_asked_for_first(tiny_model_folder, tmp_path):
    for name, kind in KINDS.items():
        if kind.needs:
            with pytest.raises(UsageError, match=f"{kind.needs[0]}: missing; the attack {name}"):
                check(order(tiny_model_folder, tmp_path / "out", [name]))
        elif kind.texts(configs([name])[name]):
            with pytest.raises(UsageError, match="--forget-texts FILE"):
                check(order(tiny_model_folder, tmp_path / "out", [name]))
    assert not (tmp_path / "out").exists()


def test_a_killed_attack_goes_on_from_its_notes(tiny_model_folder, tmp_path):
    asked = order(tiny_model_folder, tmp_path / "out", ["quantise"])
    (whole,) = run(order(tiny_model_folder, tmp_path / "whole", ["quantise"]))

    def killed(_: str, found: str) -> None:
        if found.startswith("8 bits"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(asked, killed))
    assert not (tmp_path / "out" / "quantise.json").exists()
    heard: list[str] = []
    (result,) = run(asked, lambda _, found: heard.append(found))
    assert heard[0] == "8 bits/forget"
    assert result.conditions == whole.conditions


def test_a_result_of_other_weights_is_refused(tiny_model_folder, tmp_path):
    out = tmp_path / "out"
    list(run(order(tiny_model_folder, out, ["quantise"])))
    other = tmp_path / "other"
    build_llama(seed=1).save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    for kind in ("quantise", "rephrase"):  # also before another kind joins the page
        with pytest.raises(UsageError, match=r"quantise\.json is of an attack with other weights"):
            list(run(order(other, out, [kind])))
    (out / "quantise.json").write_text("{}")
    with pytest.raises(UsageError, match="is no result of an attack"):
        read_results(out)


def test_texts_may_be_added_for_kinds_that_read_them(tiny_model_folder, tmp_path):
    out, more = tmp_path / "out", replace(MATERIAL, forget_texts=("The cat sees a bird.",))
    list(run(order(tiny_model_folder, out, ["quantise"])))
    check(order(tiny_model_folder, out, ["quantise"], material=more))
    chosen = configs(list(KINDS))
    assert "relearn" not in possible(chosen, MATERIAL, None, None)
    both = replace(more, retain_texts=("The moon is in the tree.",))
    assert {"relearn", "orthogonalise"} <= set(possible(chosen, both, "base", None))


def test_many_models_stand_below_one_another_in_a_table_for_each_kind():
    def results(name: str, count: int) -> Result:
        return Result(name, {}, [fixed("4 bits", {"forget": count})], Cost())

    many = {
        f"model {n}": {kind: results(kind, n) for kind in ("quantise", "prune")} for n in range(9)
    }
    del many["model 3"]["prune"]
    quantised, pruned = overview(many)
    assert quantised.head == ["", "quantise: 4 bits (n = 8)"]
    assert [row[0] for row in quantised.rows] == [*many]
    assert [row[1][:11] for row in quantised.rows][::8] == ["0.50 → 0.00", "0.50 → 1.00"]
    assert pruned.head == ["", "prune: 4 bits (n = 8)"]
    assert [row[0] for row in pruned.rows] == [name for name in many if name != "model 3"]


def test_without_a_kind_what_is_refused_is_left_out_with_its_reason(tiny_model_folder, tmp_path):
    given = command(tiny_model_folder, tmp_path, "--plan")
    without = [each for each in given if each not in ("--kind", "quantise")]
    said = " ".join(CliRunner().invoke(app, without, catch_exceptions=False).output.split())
    assert "left out: lens (forget: a letter is right in 1 of 4 questions, and a probe" in said
    assert "quantise: Quantisation(bits=(8, 4)" in said
    assert "lens: Lens(" not in said
    assert not (tmp_path / "out").exists()


def test_what_is_finished_is_told_though_the_next_kind_fails(
    tiny_model_folder, tmp_path, monkeypatch
):
    failing = replace(KINDS["rephrase"], module=SimpleNamespace(run=lambda *_, **__: 1 / 0))
    monkeypatch.setattr("defuse.attacks.run.KINDS", {**KINDS, "rephrase": failing})
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(
            app,
            command(tiny_model_folder, tmp_path, "--kind", "rephrase"),
            catch_exceptions=False,
        )
    assert "## quantise" in (tmp_path / "out" / "attacks.md").read_text()


def test_examples_are_shown_in_turn_with_random_controls_last():
    asked = {"forget": [outcome(q, 0) for q in QUESTIONS]}
    turned = {"forget": [outcome(q, 1) for q in QUESTIONS]}
    names = ("random suffix", "a", "b")
    found = [each for name in names for each in examples(name, asked, turned)]
    assert [each.condition for each in in_turn(found)][:4] == ["a", "b", "a", "b"]


def test_the_page_escapes_what_data_sets_say():
    evil = Question("q", "<script>alert(1)</script>", WORDS, 0)
    before, after = {"forget": [outcome(evil, 0)]}, {"forget": [outcome(evil, 1)]}
    shown = list(examples("x", before, after))
    result = Result("quantise", {}, [condition("x", before, after, 0)], Cost(), shown)
    page = render(make_page("m", {"quantise": result}))
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_an_attack_leaves_the_model_as_it_was():
    model, tokenizer = build_llama(), build_tokenizer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantisation.run(model, tokenizer, MATERIAL, notes=Notes())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
