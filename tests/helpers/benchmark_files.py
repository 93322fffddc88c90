"""Small copies of MMLU and WMDP in the layouts in which people have them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from defuse.evaluate.tasks import SUITES

MMLU = tuple(subject.name for subject in SUITES["mmlu"].subjects)
WMDP = ("bio", "chem", "cyber")
Row = dict[str, Any]


def rows(subject: str, count: int) -> list[Row]:
    """Questions of differing lengths, each subject its own."""
    return [
        {
            "question": f"Which cat of {subject} is number {i}{' and so on' * (i % 3)}?",
            "choices": [f"cat {i}", "a bird", f"the moon of {subject}", "no tree"],
            "answer": (i + len(subject)) % 4,
        }
        for i in range(count)
    ]


def write_mmlu_csv(folder: Path, subjects: Sequence[str] = MMLU, count: int = 2) -> None:
    """As the authors' archive: no header, answers as letters."""
    for split, number in (("test", count), ("dev", 3)):
        for subject in subjects:
            path = folder / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                for row in rows(f"{subject} {split}" if split == "dev" else subject, number):
                    cells = [row["question"], *row["choices"], "ABCD"[row["answer"]]]
                    csv.writer(file).writerow(cells)


def write_parquet(folder: Path, configs: dict[str, str], split: str, count: int) -> None:
    """As the hub's folders: one for each configuration, here in two files each."""
    for config, subject in configs.items():
        write_rows_parquet(folder / config, rows(subject, count), split)


def write_rows_parquet(folder: Path, found: Sequence[Row], split: str = "test") -> None:
    """Rows in two files of one split."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(found))
    for number, part in enumerate((table.slice(0, 1), table.slice(1))):
        parquet.write_table(part, folder / f"{split}-{number:05}-of-00002.parquet")


def write_hub_dataset(folder: Path, configs: dict[str, str], splits: Sequence[str]) -> None:
    """With the card that lets `datasets` load each configuration and split."""
    for split in splits:
        write_parquet(folder, configs, split, 3)
    write_card(folder, list(configs), splits)


def write_card(folder: Path, configs: Sequence[str], splits: Sequence[str]) -> None:
    """The card that says where each configuration and split lies."""
    card = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": f"{config}/{split}-*"} for split in splits],
        }
        for config in configs
    ]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': card})}\n---\n")


def write_wmdp_json(folder: Path, names: Sequence[str] = WMDP, count: int = 4) -> None:
    """As the authors' archive."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}_questions.json").write_text(json.dumps(rows(name, count)))
