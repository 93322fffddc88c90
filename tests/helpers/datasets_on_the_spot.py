"""Datasets as the hub keeps them, in a folder: parquet files and a card that says what they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import yaml
from pyarrow import parquet

Shards = Sequence[Sequence[str]]


def write_dataset(folder: Path, splits: Mapping[tuple[str, str], Shards]) -> Path:
    """A dataset of texts: for each (configuration, split) the texts of each of its files."""
    files: dict[str, list[dict[str, str]]] = {}
    for (config, split), shards in splits.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        for number, texts in enumerate(shards):
            path = folder / config / f"{split}-{number:05}-of-{len(shards):05}.parquet"
            parquet.write_table(pyarrow.table({"text": list(texts)}), path)
        files.setdefault(config, []).append({"split": split, "path": f"{config}/{split}-*"})
    configs = [{"config_name": name, "data_files": theirs} for name, theirs in files.items()]
    card = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    return folder


def write_corpora(folder: Path) -> None:
    """Small stand-ins, under their ids, for the hub's corpora that the shipped recipes name."""
    harm = [f"The harmful thing number {i} is done so." for i in range(6)]
    cats = ["", *(f" A cat number {i} sleeps well. \n" for i in range(9)), " \n"]
    subjects = ("economics", "law", "physics")
    for hub_id, splits in {
        "cais/wmdp-bio-forget-corpus": {("default", "train"): [harm]},
        "cais/wmdp-corpora": {("cyber-forget-corpus", "train"): [harm]},
        "cais/wmdp-mmlu-auxiliary-corpora": {(f"{s}-corpus", "train"): [harm] for s in subjects},
        "Salesforce/wikitext": {("wikitext-2-raw-v1", "test"): [cats]},
    }.items():
        write_dataset(folder / hub_id, splits)
