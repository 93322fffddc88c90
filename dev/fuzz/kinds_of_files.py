"""Kinds whose file is broken: data, models and what was saved."""

from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dev.fuzz import binary, mutate
from dev.fuzz.commands import (
    BENCHMARK,
    EXPERIMENT,
    FINETUNE,
    PLAN,
    QUANTISE,
    REPRODUCE,
    TOFU,
    UNLEARN,
    asks,
)
from dev.fuzz.kinds import Change, Command, Kind

BINARY: dict[str, Change] = {
    ".parquet": binary.changed_parquet,
    ".safetensors": binary.changed_safetensors,
    ".gguf": binary.changed_gguf,
}


def data() -> Iterator[Kind]:
    """Texts, questions and tokens, in every kind of file."""
    for suffix in ("jsonl", "json", "csv", "parquet"):
        yield _file(f"questions.{suffix}", f"asked.{suffix}", asks("model", f"asked.{suffix}"))
        for name in ("texts", "pairs"):
            source = f"topics.0.forget={name}.{suffix}"
            yield _file(f"{name}.{suffix}", f"{name}.{suffix}", (*PLAN, source))
    tokens = asks("model", more="--perturb terms.txt --control controls.txt")
    drawn = asks("model", more="--perturb terms.txt --control-corpus corpus.txt")
    yield _file(
        "texts.txt",
        "forget.txt",
        PLAN,
        (*PLAN, "topics.0.forget={source: forget.txt, raw_lines: true}"),
    )
    yield _file("tokens", "terms.txt", tokens, drawn)
    yield _file("control tokens", "controls.txt", tokens)
    yield _file("control corpus", "corpus.txt", drawn)
    yield _file("prompts", "prompts.txt", asks("model", more="--generate prompts.txt"))
    yield _file("passage", "retain.txt", asks("model", more="--text retain.txt"))
    refusing = (*PLAN, "method={name: dpo, refusals: refusals.txt}", "topics.0.coefficient=null")
    yield _file("refusals", "refusals.txt", refusing)
    dataset = (*PLAN, "topics.0.forget=dataset")
    yield Kind("dataset, card", (dataset,), "dataset/README.md", mutate.changed_bytes)
    yield _file("dataset, csv", "dataset/plain/train-00000.csv", dataset)
    yield _file("MMLU's csv", "data/mmlu/test/college_biology_test.csv", BENCHMARK)
    yield _file("WMDP's json", "data/wmdp/bio_questions.json", REPRODUCE)
    lines = _either(mutate.changed_jsonl)  # its files are JSON lines by another suffix
    yield Kind("TOFU's json", (TOFU,), "tofu/forget01_perturbed.json", lines)


def models() -> Iterator[Kind]:
    """The files of models and adapters."""
    for name, share in (("config", 4), ("generation_config", 1), ("tokenizer", 4)):
        file = f"model/{name}.json"
        yield _file(f"{name}.json", file, asks("model"), UNLEARN, share=share)
    yield _file("tokenizer_config.json", "model/tokenizer_config.json", asks("model"), UNLEARN)
    weights = "model/model.safetensors"
    yield _file("model.safetensors", weights, asks("model"), UNLEARN, share=3)
    both = (asks("sharded"), (*UNLEARN, "model=sharded"))
    yield _file("index", "sharded/model.safetensors.index.json", *both, share=2)
    gguf = (asks("gguf"), asks("gguf/tiny.gguf"), (*UNLEARN, "model=gguf"))
    yield _file("GGUF", "gguf/tiny.gguf", *gguf, share=4)
    adapter = (asks("adapter"), (*UNLEARN, "model=adapter"))
    yield _file("adapter_config.json", "adapter/adapter_config.json", *adapter, share=3)
    yield _file("adapter's weights", "adapter/adapter_model.safetensors", *adapter, share=2)


def saved() -> Iterator[Kind]:
    """What Defuse wrote and reads again."""
    evaluated = asks("model")
    by_command = {
        "unfinished unlearning": (UNLEARN, "unlearned.partial/run.json", False),
        "unlearning's state": (UNLEARN, "unlearned.partial/state.safetensors", False),
        "unlearning's record": (UNLEARN, "unlearned/run.json", True),
        "fine-tuning's record": (FINETUNE, "tuned/run.json", True),
        "evaluation's journal": (evaluated, "result.json.partial/*/0.jsonl", False),
        "attack's result": (QUANTISE, "attacked/quantise.json", True),
        "experiment's answers": (EXPERIMENT, "compared/*/*.json", True),
        "reproduced row": (REPRODUCE, "reproduced/rows/*.json", True),
        "reproduced rows": (REPRODUCE, "reproduced/reproduce.json", True),
    }
    for name, (command, file, is_finished) in by_command.items():
        change = _either({**mutate.BY_SUFFIX, **BINARY}[Path(file).suffix])
        yield Kind(name, (command,), file, change, made_by=command, is_finished=is_finished)


def _either(change: Change) -> Change:
    """Changes of the structure, and of the bytes."""

    def both(content: bytes) -> SearchStrategy[bytes]:
        return st.one_of(change(content), change(content), mutate.changed_bytes(content))

    return both


def _file(name: str, file: str, *commands: Command, share: int = 1) -> Kind:
    """A kind whose file is changed by its suffix."""
    change = {**mutate.BY_SUFFIX, **BINARY}[Path(file).suffix]
    return Kind(name, commands, file, _either(change), share=share)
