"""Progress of the long verbs where the output is no terminal, as in a log of Slurm or `nohup`."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from defuse import cli
from tests.helpers.benchmark_files import write_wmdp_json

LINE = re.compile(r"^(?P<stage>.+): (?P<done>\d+) of (?P<total>\d+)(?P<rest>, .*)?$", re.M)
SECONDS = 0.01  # between lines; 30 for users
SENTENCES = [f"The cat number {i} sees a small bird in the tree." for i in range(12)]
QUESTIONS = [
    {
        "question": f"What does cat number {i} see?",
        "choices": ["bird", "tree", "moon", "cat"],
        "answer": i % 4,
    }
    for i in range(8)
]
ASKED = ("--questions", "q.jsonl", "--score", "cloze", "--device", "cpu")
VERBS = {
    "unlearn": ("recipe.yaml",),
    "finetune": (
        "model",
        "--data",
        "texts.txt",
        "--out",
        "out",
        "--epochs",
        "3",
        "--device",
        "cpu",
    ),
    "evaluate": ("model", *ASKED, "--out", "out.json"),
    "attack": (
        *("model", "--forget", "q.jsonl", "--retain", "q.jsonl", "--score", "cloze"),
        *("--kind", "quantise", "--out", "out", "--device", "cpu"),
    ),
    "theory": ("model", "--reference", "model", *ASKED, "--perturb", "tokens.txt", "--out", "out"),
    "reproduce": ("--model", "model", "--data", ".", "--out", "out", "--device", "cpu"),
}
LOSSES = {"unlearn": r"forget \S+", "finetune": r"loss \S+"}


@pytest.fixture
def work(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model, texts, questions, tokens and a recipe."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model_folder)
    Path("texts.txt").write_text("\n".join(SENTENCES))
    Path("q.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    Path("tokens.txt").write_text("mumps\nrabies\n")
    write_wmdp_json(tmp_path, count=8)
    topic = {"name": "cats", "forget": "texts.txt", "retain": "texts.txt"}
    recipe = {"model": "model", "output": "out", "method": {"name": "rmu"}, "layer": 2}
    recipe |= {"topics": [topic], "steps": 12, "device": "cpu"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("verb", VERBS)
def test_a_log_says_how_far_the_work_is(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("defuse.utils.progress.EVERY_SECONDS", SECONDS)
    monkeypatch.setattr(sys, "argv", ["defuse", verb, *VERBS[verb]])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert not left.value.code, said
    lines = list(LINE.finditer(said))
    assert lines[0]["done"] == "0"
    stages = {line["stage"] for line in lines}
    assert len(lines) > len(stages) + 1, said  # more than one line when a stage starts, and the end
    assert any(0 < int(line["done"]) <= int(line["total"]) for line in lines)
    assert lines[-1]["done"] == lines[-1]["total"]
    if verb in LOSSES:
        assert any(re.search(LOSSES[verb], line["rest"] or "") for line in lines)
