"""Several processes share a step's texts; gradients and weights are those of one process."""

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from defuse.unlearning.recipe import load_recipe
from defuse.unlearning.run import check, run
from defuse.utils.distributed import ALONE, Processes
from tests.helpers.work_of_processes import work

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return work(ALONE)


def launch(count: int, *command: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = [*launcher, "--nproc-per-node", str(count), *command]
    done = subprocess.run(  # noqa: S603
        arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_method_gives_the_same_on_several_processes(
    alone: dict[str, Tensor], tmp_path: Path, count: int
) -> None:
    """Weights in float64 to 1e-9, since AdamW enlarges rounding where gradients are near 0."""
    launch(count, "-m", "tests.helpers.work_of_processes", str(tmp_path))
    for rank in range(count):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            difference = found[name] - expected
            if "/weight/" in name:
                assert difference.abs().max() < 1e-9, name
            else:
                assert difference.norm() < 1e-5 * expected.norm(), name


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


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_accelerate_launch_shares_a_recipe_between_processes(
    tmp_path: Path, tiny_model_folder: Path, shard: bool
) -> None:
    for name in ("forget", "retain"):
        lines = [f"The {name} number {i} {'goes on ' * i}and ends.\n" for i in range(5)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    recipe, outputs = tmp_path / "recipe.yaml", [tmp_path / "two", tmp_path / "one"]
    text = RECIPE.format(model=tiny_model_folder, output=outputs[0], folder=tmp_path)
    recipe.write_text(text)
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    rest = ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, *rest]
    command = [*launcher, "-m", "defuse", "unlearn", str(recipe), f"shard={shard}"]
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = " ".join(done.stderr.split())
    assert said.count("6 steps in") == 1  # only the first process speaks
    run(check(load_recipe(recipe, [f"output={outputs[1]}"])))
    two, one = (load_file(output / "model.safetensors") for output in outputs)
    assert all((two[name] - one[name]).abs().max() < 1e-5 for name in one)
    before = load_file(tiny_model_folder / "model.safetensors")
    assert any(not torch.equal(one[name], before[name]) for name in one)
    assert not list(tmp_path.glob("*.partial"))


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
