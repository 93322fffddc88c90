"""Runs of the main job on a tiny random model: what is written, what a stop leaves behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from defuse.experiments.core.answers import FORGET, load_answers, load_base
from defuse.experiments.core.choice import choose_runs
from defuse.experiments.core.eta import Clock, spoken
from defuse.experiments.elements.experiment import (
    Bench,
    ask_base,
    execute,
    missing_steps,
    prepare_folder,
    work_left,
)
from defuse.experiments.elements.facts import ELEMENTS
from defuse.experiments.elements.grid import (
    ARMS,
    Run,
    curve,
    full_grid,
    recipe_path,
    short_grid,
    tuning_grid,
)
from defuse.experiments.elements.job import Order, carry_out, report
from defuse.experiments.elements.questions import Material
from defuse.experiments.elements.terms import Terms
from defuse.models.load import LoadedModel
from defuse.questions import FORGET_TOKEN, Question, load_questions, load_tokens
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer

SMALL = (
    "steps=6",
    "batch_size=2",
    "topics.0.forget_length=16",
    "topics.0.retain_length=16",
)
TEXTS = ["The cat sees a small bird in the tree."] * 6
FORMS = ("clean", "before/forget", "before/control", "choice/forget", "choice/control")


def questions(domain: str, count: int) -> list[Question]:
    return [
        Question(f"{domain}/{i}/r", f"The {domain} {i} is", ("a", "bird", "tree", "cat"), i % 4)
        for i in range(count)
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    base = LoadedModel(build_llama(layers=8), build_tokenizer(), "tiny")
    asked = {ELEMENTS: questions(ELEMENTS, 33), "capitals": questions("capitals", 32)}
    bench = Bench(base, asked, Terms(("gold", "tin"), ("moon", "bird")), tmp_path)
    prepare_folder(bench, Material(asked, asked, TEXTS, TEXTS))
    return bench


def run(rna: bool = False, method: str = "rmu", retain: str = "hidden_mse") -> Run:
    return Run(method, retain, rna, seed=1, changes=SMALL)


def no_tick(what: str, work: float) -> None:
    assert what
    assert work > 0


def sheets(bench: Bench, name: Run) -> dict[str, dict]:
    files = (bench.folder / "answers" / name.name).iterdir()
    read = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    for sheet in read.values():
        del sheet["seconds_per_step"]
    return read


def test_a_run_is_asked_along_the_way_in_every_form(bench):
    execute(run(), bench, no_tick)
    steps = load_answers([run()], bench.folder)[run()]
    assert tuple(steps) == curve(run(), 6) == (1, 2, 3, 4, 6)
    for step, answers in steps.items():
        assert len(answers[FORGET]) == (33 if step == 6 else 30)
        assert set(answers) == {FORGET, *(FORMS if step == 6 else FORMS[:3])}
        assert all(len(answers[form]) == (32 if step == 6 else 30) for form in FORMS[:3])


def test_a_stopped_run_leaves_whole_files_and_ends_as_if_never_stopped(bench, tmp_path):
    class StopError(Exception):
        pass

    def stop(what: str, _: float) -> None:
        if "step 5 " in what:
            raise StopError

    with pytest.raises(StopError):
        execute(run(rna=True), bench, stop)
    assert missing_steps(run(rna=True), bench) == (6,)
    before = sheets(bench, run(rna=True))
    execute(run(rna=True), bench, no_tick)
    whole = sheets(bench, run(rna=True))
    assert {name: whole[name] for name in before} == before

    unbroken = replace(bench, folder=tmp_path / "other")
    prepare_folder(unbroken, Material(bench.questions, bench.questions, TEXTS, TEXTS))
    execute(run(rna=True), unbroken, no_tick)
    assert sheets(unbroken, run(rna=True)) == whole


def test_what_is_finished_is_not_done_again(bench):
    execute(run(), bench, no_tick)
    ask_base(bench, no_tick)
    assert work_left(run(), bench) == 0

    def forbidden(what: str, _: float) -> None:
        raise AssertionError(what)

    execute(run(), bench, forbidden)
    ask_base(bench, forbidden)


def test_answers_of_another_recipe_or_to_other_questions_are_refused(bench):
    material = Material(bench.questions, bench.questions, TEXTS, TEXTS)
    execute(run(), bench, no_tick)
    other = replace(run(), changes=(*SMALL, "learning_rate=0.01"))
    place = bench.folder / "answers"
    (place / run().name).rename(place / other.name)
    with pytest.raises(UsageError, match="another recipe"):
        missing_steps(other, bench)
    elsewhere = replace(bench, terms=Terms(("iron",), ("cat",)))
    with pytest.raises(UsageError, match="holds answers with other terms; name a new folder"):
        prepare_folder(elsewhere, material)
    with pytest.raises(UsageError, match="with other texts"):
        prepare_folder(bench, replace(material, retain=["Something else."]))
    stranger = replace(bench.base, model=build_llama(layers=8, seed=1))
    with pytest.raises(UsageError, match="with other model"):
        prepare_folder(replace(bench, base=stranger), material)


def test_questions_and_terms_are_written_as_evaluate_reads_them(bench):
    for name, questions in bench.questions.items():
        found = load_questions(str(bench.folder / "questions" / f"{name}.jsonl"))
        assert found == tuple(questions)
    assert load_tokens(str(bench.folder / "terms" / "forget.txt")) == bench.terms.forget
    assert load_tokens(str(bench.folder / "terms" / "controls.txt")) == bench.terms.controls


@pytest.mark.parametrize("method", ["adaptive_rmu", "rsv", "npo", "dpo", "simnpo"])
@pytest.mark.parametrize("retain", ["hidden_mse", "logit_kl", "logit_mse"])
def test_every_shipped_recipe_runs(bench, method, retain):
    short = replace(run(rna=True, method=method, retain=retain), changes=("steps=1", *SMALL[1:]))
    execute(short, bench, no_tick)
    assert len(sheets(bench, short)) == 1


def test_the_report_has_a_row_for_every_kind_of_run(bench, capsys):
    from rich.console import Console

    runs = [run(), run(rna=True), replace(run(), mix=True)]
    ask_base(bench, no_tick)
    for each in runs:
        execute(each, bench, no_tick)
    for name in ("main", "full"):
        report(runs, bench.folder, name, bench.held_out(), Console())
        data = json.loads((bench.folder / f"{name}.json").read_text(encoding="utf-8"))
        labels = [row["label"] for row in data["rows"]]
        changed = "rmu / hidden_mse " + " ".join(SMALL)
        assert labels == ["base", changed, f"{changed} + RNA", f"{changed} + mixed"]
        for suffix in (".png", ".svg", ".md"):
            assert (bench.folder / f"{name}{suffix}").stat().st_size > 100
    assert "after a forget-term | runs | n, mixed in" in (bench.folder / "main.md").read_text()
    assert set(load_base(bench.folder)) == {FORGET, *FORMS}
    assert "accuracy by domain" in capsys.readouterr().out


def test_mixed_retain_texts_name_every_second_term_and_the_others_are_held_out(bench):
    recipe = replace(run(), mix=True).recipe(bench.texts, bench.base.name)
    (topic,) = (each.build() for each in recipe.topics)
    assert topic.triggers == bench.terms.mixed == bench.terms.forget[::2]
    assert topic.mix == 0.5
    held_out = bench.held_out()
    for domain, questions in bench.questions.items():
        for question in questions:
            term = bench.perturbation("before").variants(question, 0)[FORGET_TOKEN].replaced.token
            wanted = domain != ELEMENTS and term not in bench.terms.mixed
            assert (question.id in held_out) == wanted


def test_the_short_grid_pairs_each_seed_without_and_with_each_defence():
    runs = short_grid()
    assert {(r.seed, r.arm) for r in runs} == {(s, arm) for s in (1, 2) for arm in ARMS}
    assert {(r.method, r.retain) for r in runs} == {("rmu", "hidden_mse")}


def test_the_full_grid_has_all_pairs_and_five_seeds_for_two_methods():
    runs = full_grid()
    assert len(runs) == len(set(runs)) == 62
    assert len({(r.method, r.retain) for r in runs}) == 18
    for pair in (("rmu", "hidden_mse"), ("simnpo", "logit_kl")):
        assert {r.seed for r in runs if (r.method, r.retain) == pair} == {1, 2, 3, 4, 5}


def test_names_of_runs_are_different_and_fit_a_folder():
    for runs in (full_grid(), tuning_grid()):
        names = [each.name for each in runs]
        assert len(set(names)) == len(names)
        assert not any(set("/ ") & set(name) for name in names)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (Order(only=("rnu",)), "names no method"),
        (Order(full=True, tune=True), "does not go with full"),
        (Order(only=("npo",)), "has no run here; add --full"),
    ],
)
def test_an_order_is_checked_before_anything_runs(order, message):
    with pytest.raises(UsageError, match=message):
        carry_out(order)


def test_only_some_methods_are_chosen():
    chosen = choose_runs(short_grid, full_grid, None, ["npo"])
    assert {run.method for run in chosen} == {"npo"}


def test_time_left_goes_from_the_guess_to_the_pace_made():
    clock = Clock(total=6000, pace=10)
    assert clock.left() == "about 10 min"
    clock.began -= 540  # nine minutes in which a tenth of the guess was done
    clock.done = 540
    assert clock.left() == "about 48 min"
    assert spoken(3) == "about 0 s"
    assert spoken(3 * 3600) == "about 3.0 h"


def test_shipped_recipes_name_their_own_file():
    from defuse.unlearning.recipe import load_recipe

    for each in full_grid():
        recipe = load_recipe(recipe_path(each.method, each.retain))
        assert (recipe.method.name, recipe.retain.loss) == (each.method, each.retain)
