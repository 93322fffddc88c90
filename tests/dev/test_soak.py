"""Disturbed commands end as undisturbed ones, and damage is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dev.soak.outcome import Undisturbed, clear, read_files

ROOT = Path(__file__).parents[2]


def test_an_outcome_is_compared_without_times_and_damage_is_found(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("as it is")
    inputs = read_files(tmp_path)
    result = tmp_path / "out" / "result.json"
    result.parent.mkdir()
    result.write_text('{"accuracy": 0.5, "seconds": 1}')
    undisturbed = Undisturbed(read_files(tmp_path, inputs), frozenset())
    result.write_text('{"accuracy": 0.5, "seconds": 2}')
    assert not undisturbed.difference(read_files(tmp_path, inputs))
    result.write_text('{"accuracy": 0.25, "seconds": 1}')
    assert undisturbed.difference(read_files(tmp_path, inputs)) == "out/result.json differs"
    result.rename(tmp_path / ".result.json.part")
    assert "is left behind" in undisturbed.difference(read_files(tmp_path, inputs))
    (tmp_path / ".result.json.part").unlink()
    assert undisturbed.difference(read_files(tmp_path, inputs)) == "out/result.json is missing"
    clear(tmp_path, inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


@pytest.mark.slow(reason="runs some forty commands in forks of a process of its own")
def test_commands_disturbed_at_random_end_as_undisturbed() -> None:
    command = [sys.executable, "-m", "dev.soak", "--kills", "10", "--seed", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| all | | 10 | 10 | |" in ended.stdout
