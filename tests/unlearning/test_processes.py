"""Several processes share a step's texts; gradients and weights are those of one process."""

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from defuse.unlearning.recipe import load_recipe
from defuse.unlearning.run import check, run
from defuse.utils.distributed import ALONE, Processes
from tests.helpers.work_of_processes import work

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


RECIPE = """
model: {model}
output: {output}
method: {{name: npo}}
noise: {{std: 0.1}}
layer: 2
topics: [{{name: t, forget: {folder}/forget.txt, retain: {folder}/retain.txt, weight: 5}}]
steps: 6
batch_size: 3
learning_rate: 1e-3
checkpoint_every: 2
device: cpu
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Path:
    for name in ("forget", "retain"):
        lines = [f"The {name} number {i} {'goes on ' * i}and ends.\n" for i in range(5)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    path = tmp_path / "recipe.yaml"
    text = RECIPE.format(model=tiny_model_folder, output=tmp_path / "many", folder=tmp_path)
    path.write_text(text)
    return path


def launch(*command: str) -> str:
    """Start a command with a launcher; returns what it wrote on standard error."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def assert_same_run(recipe: Path, said: str, tiny_model_folder: Path) -> None:
    """Only the first process speaks, and the weights are those of one process."""
    assert " ".join(said.split()).count("6 steps in") == 1
    one = recipe.parent / "one"
    run(check(load_recipe(recipe, [f"output={one}"])))
    many, alone, before = (
        load_file(folder / "model.safetensors")
        for folder in (recipe.parent / "many", one, tiny_model_folder)
    )
    assert all((many[name] - alone[name]).abs().max() < 1e-5 for name in alone)
    assert any(not torch.equal(alone[name], before[name]) for name in alone)
    assert not list(recipe.parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("count", "cases"),
    [
        (2, "few"),
        pytest.param(2, "all", marks=pytest.mark.slow),  # six times as many cases
        pytest.param(4, "all", marks=pytest.mark.slow),
    ],
)
def test_every_method_and_a_recipe_give_the_same_on_several_processes(
    recipe: Path, tiny_model_folder: Path, count: int, cases: str
) -> None:
    """Weights in float64 to 1e-9, since AdamW enlarges rounding where gradients are near 0."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    worker = ["-m", "tests.helpers.work_of_processes", str(recipe.parent), cases, str(recipe)]
    said = launch(*torchrun, *worker)
    alone = work(ALONE, cases)
    for rank in range(count):
        found = load_file(recipe.parent / f"{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            difference = found[name] - expected
            if "/weight/" in name:
                assert difference.abs().max() < 1e-9, name
            else:
                assert difference.norm() < 1e-5 * expected.norm(), name
    assert_same_run(recipe, said, tiny_model_folder)


@pytest.mark.slow  # a launcher and two processes more for the same code
@pytest.mark.parametrize("shard", [False, True])
def test_accelerate_launch_shares_a_recipe_between_processes(
    recipe: Path, tiny_model_folder: Path, shard: bool
) -> None:
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    rest = ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]
    command = ["-m", "defuse", "unlearn", str(recipe), f"shard={shard}"]
    said = launch("accelerate.commands.launch", *options, *rest, *command)
    assert_same_run(recipe, said, tiny_model_folder)


def test_each_item_goes_to_one_process() -> None:
    items = list(range(7))
    parts = [list(Processes(rank, 3).mine(items)) for rank in range(3)]
    assert sorted(chain.from_iterable(parts)) == items
    assert list(ALONE.mine(items)) == items


def test_alone_nothing_is_sent() -> None:
    tensor = torch.ones(2)
    ALONE.add_up([tensor])
    ALONE.wait()
    assert ALONE.gather("x") == ["x"]
    assert tensor.tolist() == [1, 1]
