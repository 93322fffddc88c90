"""Datasets as the hub keeps them, in a folder: parquet files and a card that says what they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import yaml
from pyarrow import parquet

Shards = Sequence[Sequence[str]]


def write_dataset(folder: Path, splits: Mapping[tuple[str, str], Shards]) -> Path:
    """A dataset of texts: for each (configuration, split) the texts of each of its files."""
    configs = []
    for (config, split), shards in splits.items():
        place = folder / config
        place.mkdir(parents=True, exist_ok=True)
        for number, texts in enumerate(shards):
            table = pyarrow.table({"text": list(texts)})
            parquet.write_table(table, place / f"{split}-{number:05}-of-{len(shards):05}.parquet")
        files = [{"split": split, "path": f"{config}/{split}-*"}]
        configs.append({"config_name": config, "data_files": files})
    card = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    return folder
