"""Hashes of a model's files: equal hashes mean that the same model is loaded."""

import glob
import hashlib
from pathlib import Path

from defuse.models.gguf_parts import parts_of
from defuse.models.locate import Source, hub_commit
from defuse.utils.file_hash import file_hash

# The files that decide what is computed, by what a refusal calls them.
PATTERNS = {
    "weights": ("*.safetensors", "*.safetensors.index.json"),
    "configuration": ("config.json", "adapter_config.json"),
    "tokenizer": (
        "tokenizer*.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*",
        "merges*",
        "*.model",
        "*.tiktoken",
        "chat_template*",
    ),
}


def file_identity(source: Source) -> dict[str, str]:
    """What the files of `source` say: hashes of weights, configuration and tokenizer.

    A hub repository is identified by its commit, and must be downloaded in part at least.
    """
    local = Path(source.path)
    if not local.is_dir():
        found = {"commit": hub_commit(source) or source.revision or ""}
    else:
        weights = PATTERNS["weights"] if source.gguf is None else _gguf_files(local, source.gguf)
        patterns = {**PATTERNS, "weights": weights}
        found = {kind: _hash(local, names) for kind, names in patterns.items()}
    patterns = [name for names in PATTERNS.values() for name in names]
    adapters = [_hash(folder, patterns) for folder in source.adapters]
    if adapters:
        found["adapter"] = " ".join(adapters)
    return found


def _gguf_files(folder: Path, first: str) -> tuple[str, ...]:
    return tuple(glob.escape(part.name) for part in parts_of(folder / first))


def _hash(folder: Path, patterns: list[str] | tuple[str, ...]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    parts = (f"{path.name} {file_hash(path)}" for path in files if path.is_file())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
