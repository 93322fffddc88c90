"""Broken inputs are refused as promised, and the tool that makes them sees what is not."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from dev.forks import Ending
from dev.fuzz import corpus
from dev.fuzz.fields import attack_fields, experiment_paths, recipe_paths, tofu_paths
from dev.fuzz.kinds import Input
from dev.fuzz.verdict import verdict

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "fuzz_corpus"
SENTENCE = "defuse: steps: 0 is refused; give 1 or more\n"


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-m", "dev.fuzz", *arguments]
    return subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_what_once_went_wrong_is_refused_or_read() -> None:
    ended = fuzz("--replay", str(CORPUS))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(list(CORPUS.glob('*.json')))} inputs replayed, 0 wrong" in ended.stdout


@pytest.mark.slow(reason="runs 300 commands in forks of a process of its own")
def test_broken_inputs_of_every_kind_are_refused_or_read() -> None:
    ended = fuzz("-n", "300", "--seed", "0")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def judged(code: int, err: str = "", out: str = "", after: Sequence[str] = ("a",)) -> str:
    files = dict.fromkeys(after, "0")
    return verdict(Ending(code, out, err), {"a": "0"}, files, ["out*"])


def test_a_refusal_and_a_result_are_right() -> None:
    assert not judged(0, out="fine", after=["a", "out/x"])
    assert not judged(2, SENTENCE)
    assert not judged(2, f"left out: x\n{SENTENCE}")
    assert not judged(2, "Usage: defuse x\n\u256d\u2500 Error \u2500\u256e\n")


def test_all_else_is_wrong() -> None:
    assert judged(1, "defuse: an error that should not happen (x)\n").startswith("crash")
    assert judged(2, "Traceback (most recent call last)\n").startswith("crash")
    assert judged(1) == "exit code 1: nothing is said"
    assert judged(-24) == "takes more than 10 s"
    assert judged(-9) == "hangs"
    assert judged(-11) == "ends by SIGSEGV"
    assert judged(0, out="a\x1b[2J") == "control characters on the screen"
    assert judged(2).startswith("no single sentence")
    assert judged(2, f"{SENTENCE}and more\n").startswith("no single sentence")
    assert judged(2, f"defuse: {'x' * 5000}\n").startswith("a sentence of 5008 characters")
    assert judged(0, after=["a", "b"]) == "b was written"
    assert judged(0, after=[]) == "a was written"


def test_fields_are_those_of_the_dataclasses() -> None:
    recipe = {".".join(map(str, path)) for path in recipe_paths()}
    assert {"steps", "noise.std", "train.lora.rank", "optimiser.eps"} <= recipe
    assert {"topics.0.forget.limit", "topics.0.mix", "method.npo.beta", "retain.loss"} <= recipe
    experiment = {".".join(map(str, path)) for path in experiment_paths()}
    assert {"compare.seeds", "perturb.positions", "unlearn.noise.std", "few_shot"} <= experiment
    assert {"finetune.epochs", "unlearn.topic.weight"} <= {
        ".".join(map(str, path)) for path in tofu_paths()
    }
    assert {"quantise.bits", "gcg.steps"} <= set(attack_fields())


@pytest.mark.parametrize(
    "content", [b"steps: !!int x\n", b"", b"steps: 1\nseed: 2\nmore", b"\xff" * 10, None]
)
def test_a_corpus_file_holds_what_differs(tmp_path: Path, content: bytes | None) -> None:
    def valid(_: str) -> bytes:
        return b"steps: 1\nseed: 2\n"

    given = Input("recipe, fields", ("unlearn", "recipe.yaml"), content)
    path = corpus.save(tmp_path, given, "crash", valid)
    assert corpus.load(path, valid) == given
