"""A killed run resumes and ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from safetensors.torch import load_file

from defuse.run_folder import LOCK
from defuse.unlearning.checkpoint import PREVIOUS_STATE, STATE, SavedState
from defuse.unlearning.recipe import load_recipe
from defuse.unlearning.run import check, finished
from defuse.unlearning.run import run as run_plan
from defuse.utils.errors import Caution, UsageError
from defuse.utils.files import held
from tests.helpers.bad_disk import file_limit, flip_a_bit

# What a command needs to be one of ours, on one thread, whatever directory it runs in.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
STEPS = 40


@pytest.fixture
def work(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe whose texts come again, of unequal lengths, in ever new order."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("forget", 7), ("retain", 9)):
        lines = [f"The {name} number {i} {'goes on ' * i}and ends.\n" for i in range(count)]
        Path(f"{name}.txt").write_text("".join(lines))
    topic = {"name": "t", "forget": "forget.txt", "retain": "retain.txt", "weight": 5}
    recipe = {
        "model": str(tiny_model_folder),
        "output": "out",
        "method": {"name": "npo"},
        "noise": {"std": 0.1},
        "layer": 2,
        "topics": [topic],
        "steps": STEPS,
        "batch_size": 3,
        "learning_rate": 1e-3,
        "shuffle": True,
        "device": "cpu",
        "checkpoint_every": 3,
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "defuse", "unlearn", "recipe.yaml", *overrides]


def kill_after(seconds: float, state: Path, *overrides: str) -> int:
    """Start, wait for the first state to be written, go on for `seconds`, and SIGKILL."""
    process = subprocess.Popen(  # noqa: S603
        command(*overrides), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    already = state.stat().st_mtime_ns if state.exists() else 0
    while process.poll() is None:
        if state.exists() and state.stat().st_mtime_ns != already:
            break
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def assert_killed_runs_end_alike(kills: int, method: str) -> None:
    setting = f"method.name={method}"
    run_plan(check(load_recipe(Path("recipe.yaml"), ["output=plain", setting])))
    rng, state, died = Random(kills), Path("out.partial") / STATE, 0  # noqa: S311
    for _ in range(kills):
        died += kill_after(rng.uniform(0, 0.12), state, setting) == -signal.SIGKILL
        if Path("out").exists():
            break
    assert died > 0
    run_plan(check(load_recipe(Path("recipe.yaml"), [setting])))
    one, other = (load_file(f"{name}/model.safetensors") for name in ("plain", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = [json.loads(Path(f"{n}/run.json").read_text())["steps"] for n in ("plain", "out")]
    for before, after in zip(*records, strict=True):
        assert before | {"seconds": 0} == after | {"seconds": 0}
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith((".", "out"))) == [
        "out"
    ]


@pytest.mark.parametrize(
    ("method", "kills"), [("npo", 1), pytest.param("rmu", 5, marks=pytest.mark.slow)]
)
def test_killed_runs_end_bit_for_bit_as_undisturbed(work: Path, method: str, kills: int) -> None:
    assert work == Path.cwd()
    assert_killed_runs_end_alike(kills, method)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_bit_for_bit_as_undisturbed(work: Path) -> None:
    """A state after every step, so that many kills fall into the writing of one."""
    recipe = work / "recipe.yaml"
    text = recipe.read_text().replace(f"steps: {STEPS}", "steps: 600")
    recipe.write_text(text.replace("checkpoint_every: 3", "checkpoint_every: 1"))
    assert_killed_runs_end_alike(20, "npo")


def interrupted(work: Path, steps: int, *overrides: str) -> None:
    """Do `steps` of the recipe's steps in this process, then fail as a power cut would."""
    plan = check(load_recipe(work / "recipe.yaml", overrides))

    def stop(record: object) -> None:
        if getattr(record, "step", -1) == steps - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, on_step=stop)


def test_it_goes_on_from_the_last_state(work: Path) -> None:
    interrupted(work, 11)
    seen: list[int] = []
    plan = check(load_recipe(work / "recipe.yaml"))
    run_plan(plan, on_step=lambda record: seen.append(record.step))
    assert seen == list(range(STEPS))  # the bar starts where it was: old records come again
    assert not Path("out.partial").exists()


@pytest.mark.parametrize(
    "change", ["seed=7", "steps=41", "noise.std=0.2", "topics.0.weight=6"], ids=str
)
def test_the_state_of_another_recipe_is_refused(work: Path, change: str) -> None:
    interrupted(work, 5)
    with pytest.raises(UsageError, match=r"output: .*out\.partial holds the beginning of a run"):
        run_plan(check(load_recipe(work / "recipe.yaml", [change])))
    assert (work / "out.partial" / STATE).exists()  # nothing computed is lost


def test_other_texts_under_the_same_names_are_refused(work: Path) -> None:
    interrupted(work, 5)
    texts = work / "forget.txt"
    texts.write_text(texts.read_text().replace("number 3", "number 4"))
    with pytest.raises(UsageError, match="a run with other texts"):
        run_plan(check(load_recipe(work / "recipe.yaml")))


def test_how_often_the_state_is_written_may_change(work: Path) -> None:
    interrupted(work, 5)
    run_plan(check(load_recipe(work / "recipe.yaml", ["checkpoint_every=0"])))
    assert (work / "out" / "run.json").exists()


def test_a_second_process_on_the_same_output_is_refused(work: Path) -> None:
    plan = check(load_recipe(work / "recipe.yaml"))
    lock = held(work / "out.partial" / LOCK, "output", "out")
    with lock, pytest.raises(UsageError, match="output: out is in use by another process"):
        run_plan(plan)


def test_a_state_that_is_no_state_is_refused(work: Path) -> None:
    (work / "out.partial").mkdir()
    (work / "out.partial" / STATE).write_bytes(b"half a file")
    with pytest.raises(UsageError, match="is damaged, or no state of a run"):
        run_plan(check(load_recipe(work / "recipe.yaml")))


def test_after_damage_to_the_latest_state_the_one_before_it_is_used(work: Path) -> None:
    run_plan(check(load_recipe(work / "recipe.yaml", ["output=plain"])))
    interrupted(work, 11)  # states after 6 and 9 steps
    flip_a_bit(work / "out.partial" / STATE, -100)
    with pytest.warns(Caution, match="state.safetensors is damaged.*from the state before it"):
        run_plan(check(load_recipe(work / "recipe.yaml")))
    one, other = (load_file(f"{name}/model.safetensors") for name in ("plain", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("place", [-100, 40, 4], ids=["a weight", "the header", "its length"])
def test_a_run_whose_states_are_all_damaged_is_refused(work: Path, place: int) -> None:
    interrupted(work, 11)
    for name in (STATE, PREVIOUS_STATE):
        flip_a_bit(work / "out.partial" / name, place)
    with pytest.raises(UsageError, match="is damaged, or no state of a run"):
        run_plan(check(load_recipe(work / "recipe.yaml")))


def test_a_state_with_other_tensors_is_refused(work: Path) -> None:
    """The checksum is right, but a tensor is missing: a state is loaded whole or not at all."""
    weights = {"a": torch.ones(2, requires_grad=True), "b": torch.ones(3, requires_grad=True)}
    optimiser = torch.optim.AdamW(weights.values())
    sum(each.sum() for each in weights.values()).backward()  # type: ignore[union-attr]
    optimiser.step()
    saved = SavedState(work, 1, "one run")
    saved.save({"a": weights["a"]}, optimiser, [{}])
    with pytest.raises(UsageError, match="its tensors are not those that the recipe trains"):
        saved.restore(weights, optimiser)


@pytest.mark.parametrize("change", ["texts", "weights", "tokenizer", "configuration"])
def test_a_finished_run_that_would_now_read_something_else_is_refused(
    work: Path, tiny_model_folder: Path, change: str
) -> None:
    shutil.copytree(tiny_model_folder, "base")
    settings = ["model=base", "steps=1", "checkpoint_every=0"]
    run_plan(check(load_recipe(work / "recipe.yaml", settings)))
    if change == "texts":
        texts = work / "forget.txt"
        texts.write_text(texts.read_text().replace("number", "nodule"))
    elif change == "weights":
        flip_a_bit(work / "base" / "model.safetensors", -4)
    else:
        name = "config.json" if change == "configuration" else "tokenizer_config.json"
        told = json.loads((work / "base" / name).read_text())
        (work / "base" / name).write_text(json.dumps({**told, "note": "another"}))
    with pytest.raises(UsageError, match=f"output: out holds another run, with other {change};"):
        finished(check(load_recipe(work / "recipe.yaml", settings)))


@pytest.mark.parametrize("damage", ["cut short", "deleted", "changed"])
def test_a_finished_run_whose_output_is_damaged_is_refused(work: Path, damage: str) -> None:
    plan = check(load_recipe(work / "recipe.yaml", ["steps=1", "checkpoint_every=0"]))
    run_plan(plan)
    assert finished(plan)
    weights = work / "out" / "model.safetensors"
    if damage == "deleted":
        weights.unlink()
    elif damage == "cut short":
        os.truncate(weights, 1000)
    else:
        flip_a_bit(weights, -4)
    with pytest.raises(UsageError, match=r"out/model\.safetensors is not as the run wrote it"):
        finished(plan)


def test_an_error_before_the_first_state_leaves_nothing_behind(work: Path) -> None:
    interrupted(work, 2)
    assert not list(work.glob("out*"))


def test_a_disk_that_is_full_costs_nothing_that_was_written(work: Path) -> None:
    interrupted(work, 11)
    state = work / "out.partial" / STATE
    before = state.read_bytes()
    plan = check(load_recipe(work / "recipe.yaml"))
    with file_limit(len(before) // 2), pytest.raises(UsageError) as refusal:
        run_plan(plan)
    assert "output: the state after 12 steps cannot be written" in str(refusal.value)
    assert "make room and run the same command again" in str(refusal.value)
    assert state.read_bytes() == before
    stateless = check(load_recipe(work / "recipe.yaml", ["checkpoint_every=0"]))
    full = pytest.raises(UsageError, match="output: out cannot be written")
    with file_limit(len(before) // 2), full:  # no state to write, but the model
        run_plan(stateless)
    assert not (work / "out").exists()
    run_plan(plan)
    assert (work / "out" / "run.json").exists()
