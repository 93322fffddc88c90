"""The lab's runs: asked along the way, resumed, compared, and reported in full."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from defuse.experiments.core.answers import CLEAN, FORGET, Answers, load_answers
from defuse.experiments.synthetic.compare import kl_to_gold, make_defences, make_groups
from defuse.experiments.synthetic.domains import ANIMALS, PEOPLE
from defuse.experiments.synthetic.exam import POSITIONS
from defuse.experiments.synthetic.experiment import ON_THE_WAY, Bench, execute, missing_steps
from defuse.experiments.synthetic.grid import (
    ARMS,
    SETTINGS,
    Run,
    Setting,
    full_grid,
    short_grid,
    tuning_grid,
)
from defuse.experiments.synthetic.job import (
    Order,
    answers_folder,
    answers_of,
    carry_out,
    check_knowledge,
    refuse_other_models,
    report,
    work_left,
)
from defuse.experiments.synthetic.language import build_tokenizer
from defuse.experiments.synthetic.model import new_model
from defuse.experiments.synthetic.models import Pair, load_pair, missing, models_folder, teach_pair
from defuse.experiments.synthetic.results import rows
from defuse.experiments.synthetic.tuning import regimes, sentences
from defuse.experiments.synthetic.workers import Place, run_all
from defuse.experiments.synthetic.world import build_world
from defuse.models.load import LoadedModel
from defuse.unlearning.train import unlearn
from defuse.utils.errors import UsageError

WORLD = build_world(size=8)
TINY = Setting(steps=4, learning_rate=1e-2)


def pair() -> Pair:
    tokenizer = build_tokenizer(WORLD)
    base, gold = (
        LoadedModel(new_model(tokenizer, seed).eval(), tokenizer, name)
        for seed, name in enumerate(("base", "gold"))
    )
    return Pair(base, gold)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(pair().base, WORLD, "animals", "reported", tmp_path)


def run(method: str = "rmu", retain: str = "hidden_mse", **fields: object) -> Run:
    return Run(method, retain, 0, tried=TINY, **fields)  # type: ignore[arg-type]


def test_a_run_is_asked_along_the_way_and_everything_at_its_end(bench):
    heard = []
    execute(run(), bench, lambda _, step: heard.append(step))
    steps = load_answers([run()], bench.folder)[run()]
    assert tuple(steps) == run().checkpoints == tuple(heard) == (1, 2, 3, 4)
    assert set(steps[2]) == set(ON_THE_WAY)
    assert set(steps[4]) == set(bench.exam.forms)
    for form, sheet in steps[4].items():
        assert list(sheet) == [question.id for question in bench.exam.forms[form]]


def test_what_is_missing_is_asked_again_and_comes_out_the_same(bench):
    execute(run(), bench)
    file = bench.folder / "answers" / run().name / "step-0002.json"
    before = file.read_text()
    file.unlink()
    assert missing_steps(run(), bench) == (2,)
    assert work_left(run(), bench) > 0
    execute(run(), bench)
    assert file.read_text() == before
    assert work_left(run(), bench) == 0


def test_answers_of_another_setting_are_not_taken_for_this_run_s(bench, monkeypatch):
    plain = replace(run(), tried=None)
    monkeypatch.setitem(SETTINGS, ("rmu", "hidden_mse"), TINY)  # type: ignore[arg-type]
    execute(plain, bench)
    monkeypatch.setitem(SETTINGS, ("rmu", "hidden_mse"), replace(TINY, weight=3.0))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is from another setting; name a new folder"):
        missing_steps(plain, bench)


@pytest.mark.parametrize("method", ["rmu", "adaptive_rmu", "rsv", "npo", "dpo", "simnpo"])
@pytest.mark.parametrize("retain", ["hidden_mse", "logit_kl", "logit_mse"])
def test_every_pair_runs_with_noise_and_triggers_mixed_in(method, retain, bench):
    each = run(method, retain, noise="1x", mix=0.5)
    base = bench.base
    result = unlearn(
        base.model,
        base.tokenizer,
        [each.topic(bench.texts["forget"], bench.texts["retain"], bench.triggers)],
        each.unlearning(),
        replace(each.training(), steps=1),
    )
    assert all(torch.isfinite(tensor).all() for tensor in result.changed.values())


def test_mixed_retain_texts_name_only_what_may_be_mixed(bench):
    from defuse.data.text import Triggered
    from defuse.data.trigger_mixing import mix_triggers

    mixed = mix_triggers(bench.texts["retain"], bench.triggers, 0.5, 0, "lab")
    named = " ".join(text.sentence for text in mixed if isinstance(text, Triggered))
    assert any(name in named for name in bench.parts.mixed)
    assert not any(name in named for name in bench.parts.held_out)
    assert not any(name in " ".join(bench.texts["retain"]) for name in WORLD.subjects["animals"])


def test_grids_hold_every_arm_and_names_tell_runs_apart():
    assert {r.arm for r in short_grid()} == set(ARMS)
    assert {r.method for r in short_grid()} == {"rmu", "simnpo"}
    full = full_grid()
    assert len({r.name for r in full}) == len(full) == 18 * 7 * 10
    assert set(short_grid()) <= set(full)
    # Three seeds of every pair's three arms, with those of both defences in the short grid's two;
    # then seven more seeds of RMU's three.
    assert {r.seed for r in full[: 18 * 3 * 3 + 2 * 3]} == {0, 1, 2}
    rest = full[18 * 3 * 3 + 2 * 3 :]
    assert all((r.method, r.retain) == ("rmu", "hidden_mse") for r in rest[: 7 * 3])
    assert len({(r.method, r.retain) for r in rest[7 * 3 :]}) == 18
    assert run().name != replace(run(), tried=None).name


def test_tuning_changes_settings_and_uses_no_report_s_seed():
    grid = tuning_grid()
    # Nine of each pair, six of NPO's and DPO's; RMU's regimes are twenty, of which two are among
    # its nine; two pairs with four noises and four shares each.
    assert len({r.name for r in grid}) == len(grid) == 12 * 9 + 6 * 6 + 20 - 2 + 2 * (4 + 4)
    settings = {r.setting for r in grid if (r.method, r.retain) == ("rmu", "hidden_mse")}
    assert {setting.layer for setting in settings} == {1, 2, 3, 4, 5}
    assert len({r.setting for r in grid if (r.method, r.retain) == ("npo", "logit_kl")}) == 6
    assert {r.seed for r in grid}.isdisjoint({r.seed for r in full_grid()})


def sheet(right: int, n: int = 8) -> dict[str, tuple[bool, float, list[float]]]:
    even = [-1.3862943611198906] * 4
    return {f"q{i}": (i < right, -1.0 if i < right else -3.0, even) for i in range(n)}


def answers(forget: int = 8, clean: int = 8, after: int = 8, control: int = 8) -> Answers:
    forms = {FORGET: sheet(forget), CLEAN: sheet(clean)}
    for position in POSITIONS:
        forms |= {f"{position}/forget": sheet(after), f"{position}/control": sheet(control)}
    return forms


def test_a_base_model_that_knows_too_little_is_refused():
    assert check_knowledge(answers()) == []
    with pytest.raises(UsageError, match=r"answers 0\.88 of the questions 'choice/forget'; teach"):
        check_knowledge(answers(after=7))
    nearly: Answers = {**answers(), "stem/forget": sheet(95, 100)}
    (caution,) = check_knowledge(nearly)
    assert caution.endswith("answers 0.95 of the questions 'stem/forget' and should answer 0.97.")


def test_groups_and_defences_come_out_as_by_hand():
    plain, noised = Run("rmu", "hidden_mse", 0), Run("rmu", "hidden_mse", 0, noise="1x")
    finished = {
        plain: {2: answers(6), 4: answers(2, 8, 2, 7)},
        noised: {2: answers(6), 4: answers(2, 8, 5, 7)},
    }
    base = answers(8, 8, 7, 8)
    groups = {g.label: g for g in make_groups(finished, base, base)}
    assert list(groups) == ["base", "gold", plain.label, noised.label]
    assert groups[plain.label].accuracy["before/forget"].value == 0.25
    # (7 - 2) of 8 in the unlearned model, less (8 - 7) of 8 in the base.
    assert groups[plain.label].vulnerability["before"][0].value == pytest.approx(0.5)
    assert not groups["base"].vulnerability
    (defence,) = make_defences(finished, base)
    assert (defence.label, defence.against) == (noised.label, plain.label)
    assert defence.recovered["statement"].value == pytest.approx(3 / 8)
    matched = defence.matched["before"]
    assert matched is not None
    assert matched.steps == ((0, 4, 4),)


def test_the_distance_to_gold_is_the_mean_divergence_of_four_answers():
    gold = {FORGET: {"q": (True, -0.1, [-0.6931471805599453, -1.3862943611198906, -2.0, -2.1])}}
    even = {FORGET: {"q": (True, -1.4, [-1.3862943611198906] * 4)}}
    p = torch.tensor(gold[FORGET]["q"][2], dtype=torch.float64).exp()
    q = torch.full((4,), 0.25, dtype=torch.float64)
    expected = (p * (p.log() - q.log())).sum().item()
    assert kl_to_gold(FORGET, [even], gold, ["q"]).value == pytest.approx(expected)
    assert kl_to_gold(FORGET, [gold], gold, ["q"]).value == 0


def test_the_report_has_table_figures_and_every_row(bench, tmp_path):
    two = [run(), run(noise="1x")]
    for each in two:
        execute(each, bench)
    base, gold = (answers_of(name, pair(), bench) for name in ("base", "gold"))
    report(two, bench, base, gold, tmp_path, Console(quiet=True))
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["model"] for row in data["rows"]} == {"base", "gold", "rmu"}
    final = [row for row in data["rows"] if row["step"] == 4 and row["noise_std"] == 1.0]
    assert len(final) == len(bench.exam.forms)
    for row in final:
        assert 0 <= row["correct"] <= row["n"]
    assert {g["label"] for g in data["summary"]["groups"]} == {
        "base",
        "gold",
        *(r.label for r in two),
    }
    assert {"report.html", "lab.png", "lab.svg", "lab.md", "results.json"} <= {
        p.name for p in tmp_path.iterdir()
    }
    triggers = {(r["set"], r["trigger"]) for r in rows(load_answers(two, bench.folder), base, gold)}
    assert {("forget", "none"), ("retain", "none"), ("retain", "unseen")} <= triggers


def test_models_are_taught_once_saved_small_and_found_again(tmp_path):
    assert missing(tmp_path) == ["base", "gold"]
    teach_pair(WORLD, "animals", tmp_path, steps=2)
    assert missing(tmp_path) == []
    found = load_pair(tmp_path)
    assert found.base.model.dtype == torch.float32
    assert {each.name for each in (found.base, found.gold)} == {"base", "gold"}
    other = build_world(5, 8, (PEOPLE, ANIMALS))
    name = "animals-seed5-size8-people-animals"
    assert models_folder(tmp_path, other, "animals") == tmp_path / "models" / name
    assert models_folder(tmp_path, build_world(5), "animals").name == "animals-seed5"
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert size < 2.2 * found.base.model.num_parameters()


def test_workers_do_what_one_process_does(tmp_path):
    models = tmp_path / "models"
    teach_pair(WORLD, "animals", models, steps=1)
    place = Place(WORLD, "animals", "reported", models, tmp_path / "apart")
    wanted = [run(), run("simnpo", "logit_kl")]
    assert set(run_all(wanted, place, 2)) == set(wanted)
    alone = replace(place.bench(), folder=tmp_path / "alone")
    execute(wanted[0], alone)
    one, other = (
        load_answers(wanted[:1], folder)[wanted[0]] for folder in (place.folder, alone.folder)
    )
    assert one == other


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (Order(jobs=0), "jobs: 0 processes; give 1 or more"),
        (Order(forget="plants"), "forget: 'plants' is no domain of this world"),
        (Order(only=("rmuu",)), "only: 'rmuu' names no method; use rmu"),
        (Order(only=("npo",)), "only: npo has no run here; add --full"),
        (Order(full=True, tune=True), "tune: does not go with full"),
        (Order(size=2), "size: 2 subjects a domain; give 4 to"),
        (Order(domains=("animal",)), "domain: 'animal' is none; use people, countries"),
        (Order(domains=("animals",)), "domains: 1 of them; give two or more"),
    ],
)
def test_an_order_that_cannot_be_is_refused(order, message):
    with pytest.raises(UsageError, match=message):
        carry_out(order)


def test_answers_of_other_models_are_not_taken_for_these(tmp_path):
    for name in ("one", "other"):
        teach_pair(WORLD, "animals", tmp_path / name, steps=1 if name == "one" else 2)
    place = Place(WORLD, "animals", "reported", tmp_path / "one", tmp_path / "answers")
    refuse_other_models(place)
    refuse_other_models(place)
    with pytest.raises(UsageError, match="holds other models' answers; name a new folder"):
        refuse_other_models(replace(place, models=tmp_path / "other"))


def test_other_worlds_have_folders_of_their_own():
    order, usual = Order(output=Path("out")), build_world()
    assert answers_folder(order, usual) == Path("out")
    assert answers_folder(replace(order, tune=True), usual) == Path("out/tuning")
    animals = replace(order, seed=5, forget="animals")
    assert answers_folder(animals, build_world(5)) == Path("out/animals-seed5")


def test_tuning_shows_each_pair_s_trials_its_defences_and_the_regimes():
    plain = Run("rmu", "hidden_mse", 1000, tried=SETTINGS["rmu", "hidden_mse"])
    other = replace(plain, tried=replace(plain.setting, layer=1))
    finished = {
        plain: {4: answers(2, 8, 2, 7)},
        other: {2: answers(8), 4: answers(4, 4, 4, 4)},
        replace(plain, noise="1x"): {4: answers(2, 8, 5, 7)},
        replace(plain, noise="3x"): {4: answers(2, 8, 3, 7)},
        replace(plain, mix=0.5): {4: answers(8, 8, 8, 8)},
    }
    lines = list(sentences(finished, answers()))
    assert lines[0] == "rmu / hidden_mse"
    assert "layer=3" in lines[1]  # nothing left of the forget set, nothing lost of the others
    (rna,) = (line for line in lines if line.startswith("  rna to keep:"))
    assert "noise=1x" in rna
    # All is still known there.
    assert "  mixed to keep: none, all cost too much" in lines
    table = regimes(finished, answers()).splitlines()
    assert [row.split(" | ")[0] for row in table[2:]] == ["| 1", "| 3"]
    assert " | 2 | 1.00 | 1.00 |" in table[2]  # the cheaper of its two checkpoints
