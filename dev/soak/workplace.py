"""A folder with a tiny model, texts and questions, and the commands that are disturbed in it."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.benchmark_files import write_mmlu_csv, write_wmdp_json

Command = tuple[str, ...]

_COMMANDS = {
    "unlearn": "recipe.yaml",
    "evaluate": (
        "model --device cpu --questions forget.jsonl --out result.json --perturb terms.txt "
        "--control controls.txt --position before"
    ),
    "attack": (
        "model --device cpu --forget forget.jsonl --retain retain.jsonl --kind quantise "
        "--kind lens --score cloze --set quantise.bits=[4,8] --out attacked"
    ),
    "finetune": (
        "model --device cpu --data retain.txt --out tuned --epochs 2 --batch-size 3 "
        "--checkpoint-every 1 --learning-rate 0.001"
    ),
    "sweep": (
        "recipe.yaml noise.std=none,0.3x --forget-questions forget.jsonl "
        "--retain-questions retain.jsonl --runner serial --output swept --keep"
    ),
    "experiment": "experiment.yaml --runner serial",
    "theory": (
        "model --reference model --questions retain.jsonl --perturb terms.txt --score cloze "
        "--device cpu --out theorised"
    ),
    "reproduce": "--model model --device cpu --data data --limit 1 --out reproduced",
}
COMMANDS: Mapping[str, Command] = {
    name: (name, *options.split()) for name, options in _COMMANDS.items()
}


def make_inputs(folder: Path) -> None:
    """Write all that the commands read into `folder`."""
    build_llama(layers=3).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    lines = {
        "forget.txt": [f"The virus number {i} {'goes on ' * i}and ends." for i in range(5)],
        "retain.txt": [f"A cat number {i} {'sleeps ' * i}well." for i in range(7)],
        "terms.txt": ["gold", "iron"],
        "controls.txt": ["moon", "bird"],
        "forget.jsonl": [_question("virus", i) for i in range(8)],
        "retain.jsonl": [_question("cat", i) for i in range(8)],
        "recipe.yaml": [yaml.safe_dump(_recipe())],
        "experiment.yaml": [yaml.safe_dump(_experiment())],
    }
    for name, text in lines.items():
        (folder / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    write_mmlu_csv(folder / "data" / "mmlu", ["college_biology", "computer_security"])
    write_wmdp_json(folder / "data" / "wmdp")


def _recipe() -> Mapping[str, object]:
    topic = {"name": "t", "forget": "forget.txt", "retain": "retain.txt", "weight": 5}
    training = {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 1}
    method = {"method": {"name": "npo"}, "noise": {"std": 0.1}, "layer": 2, "topics": [topic]}
    where = {"model": "model", "output": "unlearned", "device": "cpu", "check_up": False}
    return {**where, **method, **training}


def _experiment() -> Mapping[str, object]:
    tokens = {"forget_tokens": "terms.txt", "control_tokens": "controls.txt"}
    return {
        "name": "tiny",
        "model": "model",
        "output": "tried",
        "device": "cpu",
        "score": "cloze",
        "texts": {"forget": "forget.txt", "retain": "retain.txt"},
        "questions": {"forget": "forget.jsonl", "retain": "retain.jsonl"},
        "perturb": {**tokens, "positions": ["before"]},
        "unlearn": {"layer": 2, "steps": 4, "batch_size": 2, "learning_rate": 1e-3},
        "compare": {"methods": {"rmu": {"coefficient": 4.0}}, "defences": ["none", {"mixing": {}}]},
        "checkpoints": [2],
    }


def _question(word: str, number: int) -> str:
    choices = ["a bird", "the tree", "the moon", "ants"]
    stem = f"What does {word} {number} see{' and hear' * (number % 3)}?"
    return json.dumps({"question": stem, "choices": choices, "answer": number % 4})
