"""The command resumes after an interruption, and processes share its work: the same digits."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from defuse import cli
from defuse.evaluate.loglikelihood import _score_batch as score_batch
from defuse.evaluate.token_tree import TokenTree
from defuse.models.decoder import Decoder
from defuse.store import ResultLog
from defuse.utils.files import held

PUT = ResultLog.put
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    rows = [
        {"question": f"Is {i} odd{' or not' * (i % 9)}?", "choices": list("wxyz"), "answer": i % 4}
        for i in range(240)
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "forget.txt").write_text("mumps")
    (folder / "control.txt").write_text("spoon")
    (folder / "text.txt").write_text("The cat sees a small bird in the tree. " * 50)
    (folder / "model").symlink_to(tiny_model_folder)
    return folder


OPTIONS = ["--questions", "q.jsonl", "--perturb", "forget.txt", "--control", "control.txt"]
EVALUATE = ["-m", "defuse", "evaluate", "model", *OPTIONS, "--text", "text.txt", "--device", "cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def start(workplace: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, *arguments],
        cwd=workplace,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workplace: Path, *arguments: str) -> str:
    with start(workplace, *arguments) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def run(workplace: Path, *arguments: str) -> int:
    """The command within this process, which is quicker."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(workplace)
        patched.setattr(sys, "argv", ["defuse", *EVALUATE[2:], *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return int(left.value.code or 0)


def kill_after(workplace: Path, lines: int, *arguments: str, out: str) -> None:
    """SIGKILL the command, with all it started, once that many batches are kept."""
    with start(workplace, *arguments) as process:
        while process.poll() is None:
            kept = (workplace / f"{out}.partial").glob("*/*.jsonl")
            if sum(file.read_bytes().count(b"\n") for file in kept) > lines:
                break
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[0]
        parent = psutil.Process(process.pid)
        everyone = [parent, *parent.children(recursive=True)]
        for each in everyone:
            each.kill()
        psutil.wait_procs(everyone, timeout=10)


def result(workplace: Path, name: str) -> Mapping[str, Any]:
    found = json.loads((workplace / name).read_text())
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> Mapping[str, Any]:
    assert run(workplace, "--out", "whole.json") == 0
    assert not (workplace / "whole.json.partial").exists()
    return result(workplace, "whole.json")


def test_interrupted_in_a_line_and_resumed_the_result_is_the_same(
    workplace: Path, undisturbed: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []

    def put(log: ResultLog, name: str, result: Any) -> Any:
        if len(finished) == 7:
            raise KeyboardInterrupt
        finished.append(name)
        return PUT(log, name, result)

    with monkeypatch.context() as patched:
        patched.setattr("defuse.store.ResultLog.put", put)
        assert run(workplace, "--out", "stopped.json") == 130
    assert not (workplace / "stopped.json").exists()
    (kept,) = (workplace / "stopped.json.partial").glob("model-*/0.jsonl")
    with kept.open("a") as file:
        file.write('{"name": "ab')
    assert run(workplace, "--out", "stopped.json") == 0
    assert result(workplace, "stopped.json") == undisturbed
    assert not (workplace / "stopped.json.partial").exists()


@pytest.mark.slow  # four processes load PyTorch
def test_killed_and_resumed_by_two_processes_the_result_is_the_same(
    workplace: Path, undisturbed: Mapping[str, Any]
) -> None:
    command = [*EVALUATE, "--out", "out.json"]
    kill_after(workplace, 7, *command, out="out.json")
    assert not (workplace / "out.json").exists()
    (kept,) = (workplace / "out.json.partial").glob("model-*/0.jsonl")
    with kept.open("a") as file:
        file.write('{"name": "ab')
    said = finish(workplace, *TORCHRUN, "2", *command)
    assert said.count("written: out.json") == 1
    assert result(workplace, "out.json") == undisturbed
    assert not (workplace / "out.json.partial").exists()


@pytest.mark.slow  # three processes load PyTorch
def test_two_processes_killed_are_resumed_by_one(
    workplace: Path, undisturbed: Mapping[str, Any]
) -> None:
    command = [*EVALUATE, "--out", "two.json"]
    kill_after(workplace, 8, *TORCHRUN, "2", *command, out="two.json")
    kept = (workplace / "two.json.partial").glob("model-*/*")
    assert {file.name for file in kept} == {"0.jsonl", "1.jsonl"}
    assert run(workplace, "--out", "two.json") == 0
    assert result(workplace, "two.json") == undisturbed


@pytest.mark.slow  # ten processes load PyTorch
def test_killed_ten_times_over(workplace: Path, undisturbed: Mapping[str, Any]) -> None:
    command = [*EVALUATE, "--out", "ten.json"]
    for number in range(10):
        kill_after(workplace, 5 * number, *command, out="ten.json")
    assert run(workplace, "--out", "ten.json") == 0
    assert result(workplace, "ten.json") == undisturbed


@pytest.mark.slow  # three processes load PyTorch
def test_an_error_in_one_process_ends_all(workplace: Path) -> None:
    script = """
import torch
from defuse.evaluate import evaluate_questions
from defuse.evaluate.resume import BatchScores
from defuse.models.load import load_model
from defuse.utils.distributed import join_processes
from defuse.questions import load_questions

processes = join_processes(torch.device("cpu"))

def keep(name, scores):
    if not processes.is_first:
        raise ZeroDivisionError

scores = BatchScores(keep=keep, processes=processes)
evaluate_questions(load_model("model"), load_questions("q.jsonl"), scores=scores)
"""
    (workplace / "work.py").write_text(script)
    with start(workplace, *TORCHRUN, "2", "work.py") as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "ZeroDivisionError" in said


def test_a_second_process_on_the_same_output_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(workplace / "used.json.partial/lock", "out", "used.json"):
        assert run(workplace, "--out", "used.json") == 2
    assert "out: used.json is in use by another process" in capsys.readouterr().err
    assert run(workplace, "--out", "used.json", "--limit", "4") == 0
    assert not (workplace / "used.json.partial").exists()


def test_another_order_is_refused_before_the_weights_are_read_and_loses_nothing(
    workplace: Path,
    undisturbed: Mapping[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("defuse.evaluate.run.perplexity", stop)
        assert run(workplace, "--out", "order.json") == 130
    monkeypatch.setattr("defuse.evaluate.run.load_model", None)
    assert run(workplace, "--out", "order.json", "--limit", "100") == 2
    said = capsys.readouterr().err
    assert "order.json.partial" in said
    assert "holds unfinished work for other questions" in said
    monkeypatch.undo()
    monkeypatch.setattr("defuse.evaluate.loglikelihood._score_batch", only_the_text)
    assert run(workplace, "--out", "order.json") == 0
    assert result(workplace, "order.json") == undisturbed


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def only_the_text(decoder: Decoder, trees: Sequence[TokenTree], *more: Any) -> list[float]:
    """Questions have twelve requests in a row, the text's windows one."""
    assert {len(tree.targets) for tree in trees} == {1}
    return score_batch(decoder, trees, *more)
