"""A folder with tiny models, texts, questions and recipes of all kinds, valid every one."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml
from peft import LoraConfig, get_peft_model
from pyarrow import parquet
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.benchmark_files import write_card, write_mmlu_csv, write_wmdp_json
from tests.helpers.tofu_on_the_spot import write_tofu
from tests.models.test_load import write_gguf
from transformers import GenerationConfig

TRAINED: Mapping[str, Any] = {
    "method": {"name": "rmu"},
    "layer": 1,
    "steps": 2,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "check_up": False,
}
WHERE: Mapping[str, Any] = {"model": "model", "device": "cpu"}
RECIPE: Mapping[str, Any] = {
    **WHERE,
    "output": "unlearned",
    **TRAINED,
    "checkpoint_every": 1,
    "noise": {"std": 0.1},
    "topics": [
        {
            "name": "t",
            "forget": "forget.txt",
            "retain": {"source": "retain.txt"},
            "coefficient": 2,
            "weight": 5,
        }
    ],
}
EXPERIMENT: Mapping[str, Any] = {
    **WHERE,
    "name": "small",
    "output": "compared",
    "texts": {"forget": "forget.txt", "retain": "retain.txt"},
    "questions": {"forget": "forget.jsonl", "retain": {"retain": "retain.jsonl"}},
    "perturb": {
        "forget_tokens": "terms.txt",
        "control_tokens": "controls.txt",
        "positions": ["before"],
    },
    "unlearn": {name: value for name, value in TRAINED.items() if name != "method"},
    "compare": {"methods": ["rmu"], "defences": ["none", {"rna": {"std": "0.3x"}}], "seeds": [0]},
    "checkpoints": [0.5],
}
TOFU: Mapping[str, Any] = {
    **WHERE,
    "output": "taught",
    "data": "tofu",
    "forget": "forget01",
    "retain_authors": 1,
    "asked": 2,
    "finetune": {"epochs": 1},
    "unlearn": {**TRAINED, "topic": {"weight": 5, "coefficient": 2}},
    "defences": {"none": {}, "rna": {"noise": {"std": "0.3x"}}},
}


def make_inputs(folder: Path) -> None:
    """Write all that the commands read into `folder`."""
    folder.mkdir(parents=True)
    _write_models(folder)
    _write_lines(folder)
    _write_rows(folder, "texts", [{"text": f"A cat number {i} sleeps."} for i in range(4)])
    _write_rows(
        folder, "pairs", [{"question": f"Who is {i}?", "answer": "A cat"} for i in range(4)]
    )
    _write_rows(folder, "asked", list(_questions("virus")))
    recipes = {"recipe": RECIPE, "experiment": EXPERIMENT, "tofu": TOFU}
    for name, recipe in recipes.items():
        text = yaml.safe_dump(dict(recipe), sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    write_mmlu_csv(folder / "data" / "mmlu", ["college_biology", "computer_security"])
    write_wmdp_json(folder / "data" / "wmdp")
    write_tofu(folder / "tofu")
    part = folder / "dataset" / "plain" / "train-00000.csv"
    part.parent.mkdir(parents=True)
    part.write_text("text,other\nA cat sleeps.,1\nA bird sings.,2\n", encoding="utf-8")
    write_card(folder / "dataset", ["plain"], ["train"])


def _write_models(folder: Path) -> None:
    model, tokenizer = build_llama(layers=2), build_tokenizer()
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    for name, size in (("model", "1GB"), ("sharded", "30KB")):
        model.save_pretrained(folder / name, max_shard_size=size)
        tokenizer.save_pretrained(folder / name)
    (folder / "gguf").mkdir()
    write_gguf(folder / "gguf" / "tiny.gguf", model, folder / "model" / "tokenizer.json")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    adapted: Any = get_peft_model(model, config)
    adapted.save_pretrained(str(folder / "adapter"))
    path = folder / "adapter" / "adapter_config.json"
    settings = {**json.loads(path.read_text()), "base_model_name_or_path": "model"}
    path.write_text(json.dumps(settings))


def _write_lines(folder: Path) -> None:
    lines: Mapping[str, Iterable[str]] = {
        "forget.txt": [f"The virus number {i} {'goes on ' * i}and ends." for i in range(5)],
        "retain.txt": [f"A cat number {i} {'sleeps ' * i}well." for i in range(7)],
        "terms.txt": ["gold", "iron"],
        "controls.txt": ["moon", "bird"],
        "corpus.txt": [" ".join("zqxkvw"[:length] for length in range(1, 7))],
        "prompts.txt": ["The cat", "A virus"],
        "refusals.txt": ["I do not know.", "No idea."],
        "forget.jsonl": map(json.dumps, _questions("virus")),
        "retain.jsonl": map(json.dumps, _questions("cat")),
    }
    for name, some in lines.items():
        (folder / name).write_text("".join(f"{line}\n" for line in some), encoding="utf-8")


def _write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """The same rows in every kind of file."""
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / f"{name}.json").write_text(json.dumps(rows))
    parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    flat = [_flat(row) for row in rows]
    lines = [",".join(flat[0]), *(",".join(map(str, row.values())) for row in flat)]
    (folder / f"{name}.csv").write_text("".join(f"{line}\n" for line in lines))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in row.items() if name != "choices"}
    return {**rest, **dict(zip("ABCD", row.get("choices", ()), strict=False))}


def _questions(word: str) -> Iterable[dict[str, Any]]:
    for i in range(3):
        choices = ["a bird", "the tree", "the moon", "ants"]
        yield {"question": f"What does {word} {i} see?", "choices": choices, "answer": i}
