"""Kinds of inputs: what is broken, how, and the commands that read it."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from defuse import cli
from defuse.experiments.synthetic.scenario import Options
from dev.fuzz import binary, fields, mutate
from dev.fuzz.values import texts, yaml_values

Command = tuple[str, ...]
Change = Callable[[bytes], SearchStrategy[bytes]]
OUTPUTS = ("result.json*", "unlearned*", "tuned*", "attacked*", "swept*", "compared*", "taught*")
OUTPUTS += ("reproduced*", "lab*", "real*", "runs*", "flips*", ".*.part")


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind: `file` with another content, or commands with other arguments.

    `share`: of all inputs, relative to other kinds. `writes`: patterns of what the commands may
    write; they never change an input. `check_only`: the function "module:name" is not called, for
    verbs whose valid inputs may take days. `made_by`: the file is what this command left when it
    was killed near its end (or, with `is_finished`, when it ended).
    """

    name: str
    commands: tuple[Command, ...]
    file: str | None = None
    change: Change | None = None
    arguments: SearchStrategy[Command] | None = None
    share: int = 1
    writes: tuple[str, ...] = OUTPUTS
    check_only: str = ""
    made_by: Command | None = None
    is_finished: bool = False


@dataclass(frozen=True)
class Input:
    """One input: the command, and what the kind's file holds (None: as it is)."""

    kind: str
    command: Command
    content: bytes | None = None


def inputs(kind: Kind, content: Callable[[str], bytes]) -> SearchStrategy[Input]:
    """Inputs of a kind; `content` reads the valid file."""
    commands = st.sampled_from(kind.commands)
    if kind.arguments is not None:
        more = kind.arguments.map(lambda some: tuple(map(_as_argument, some)))
        whole = st.tuples(commands, more).map(lambda both: (*both[0], *both[1]))
        return whole.map(lambda command: Input(kind.name, command))
    assert kind.file is not None
    assert kind.change is not None
    changed = kind.change(content(kind.file))
    return st.builds(Input, st.just(kind.name), commands, changed)


def _as_argument(text: str) -> str:
    """`text` without what no argument can hold: NUL, and surrogates that stand for no byte."""
    return re.sub("[\0\ud800-\udc7f\udd00-\udfff]", "", text)


def split(text: str) -> Command:
    return tuple(text.split())


PLAN = split("unlearn recipe.yaml --plan")
UNLEARN = split("unlearn recipe.yaml")
EVALUATE = "evaluate {} --device cpu --questions {} --out result.json --limit 2"
ATTACK = split(
    "attack model --device cpu --forget forget.jsonl --retain retain.jsonl --limit 2 "
    "--forget-texts forget.txt --retain-texts retain.txt --reference model --out attacked"
)
QUANTISE = (*ATTACK, *split("--kind quantise --set quantise.bits=[8]"))
SWEEP = split(
    "sweep recipe.yaml --forget-questions forget.jsonl --retain-questions retain.jsonl "
    "--runner serial --output swept"
)
EXPERIMENT = split("experiment experiment.yaml")
TOFU = split("tofu tofu.yaml --plan")
FINETUNE = split(
    "finetune model --device cpu --data retain.txt --out tuned --epochs 1 --batch-size 4 "
    "--checkpoint-every 1"
)
REPRODUCE = split("reproduce --model model --device cpu --data data --limit 1 --out reproduced")
BENCHMARK = split(
    "evaluate model --device cpu --suite mmlu-college_biology --data data/mmlu --limit 1 "
    "--out result.json"
)
THEORY = split(
    "theory model --reference model --questions forget.jsonl --perturb terms.txt --device cpu "
    "--limit 2 --out flips"
)


def _asks(model: str, questions: str = "forget.jsonl", more: str = "") -> Command:
    return split(f"{EVALUATE.format(model, questions)} {more}")


def _either(change: Change) -> Change:
    """Changes of the structure, and of the bytes."""

    def both(content: bytes) -> SearchStrategy[bytes]:
        return st.one_of(change(content), change(content), mutate.changed_bytes(content))

    return both


def _fields(paths: Sequence[fields.Path]) -> Change:
    return lambda content: mutate.changed_yaml(content, paths)


def _file(name: str, file: str, *commands: Command, share: int = 1) -> Kind:
    """A kind whose file is changed by its suffix."""
    change = {**mutate.BY_SUFFIX, **BINARY}[Path(file).suffix]
    return Kind(name, commands, file, _either(change), share=share)


BINARY: dict[str, Change] = {
    ".parquet": binary.changed_parquet,
    ".safetensors": binary.changed_safetensors,
    ".gguf": binary.changed_gguf,
}


def recipes() -> Iterator[Kind]:
    """Recipes, experiments and settings: every field, and the bytes."""
    paths = fields.recipe_paths()
    yield Kind("recipe, fields", (PLAN,), "recipe.yaml", _fields(paths), share=8)
    yield Kind("recipe, bytes", (PLAN,), "recipe.yaml", mutate.changed_bytes, share=2)
    experiment, tofu = _fields(fields.experiment_paths()), _fields(fields.tofu_paths())
    planned = (*EXPERIMENT, "--plan")
    yield Kind("experiment, fields", (planned,), "experiment.yaml", experiment, share=6)
    yield Kind("experiment, bytes", (planned,), "experiment.yaml", mutate.changed_bytes)
    yield Kind("tofu recipe, fields", (TOFU,), "tofu.yaml", tofu, share=3)
    yield Kind("tofu recipe, bytes", (TOFU,), "tofu.yaml", mutate.changed_bytes)
    names = [".".join(map(str, path)) for path in paths if path[:1] != ("method",)]
    yield Kind("recipe, overrides", (PLAN,), arguments=_overrides(names), share=2)
    swept = ((*SWEEP, "--plan"),)
    yield Kind("sweep, grid", swept, arguments=_overrides(names), share=2)
    sizes = (split("experiment synthetic --plan"),)
    yield Kind("synthetic, overrides", sizes, arguments=_overrides(fields.names_of(Options)))
    settings = _overrides(fields.attack_fields()).map(lambda both: ("--set", *both))
    yield Kind("attack, settings", ((*ATTACK, "--plan"),), arguments=settings, share=3)


def _overrides(names: Sequence[str]) -> SearchStrategy[Command]:
    given = st.tuples(st.sampled_from(names), yaml_values()).map("=".join)
    return st.one_of(given, given, given, texts()).map(lambda text: (text,))


VERBS: dict[str, tuple[Command, str]] = {
    "unlearn": (PLAN, ""),
    "evaluate, suites": (BENCHMARK, ""),
    "evaluate": (_asks("model"), ""),
    "attack": ((*ATTACK, "--plan"), ""),
    "finetune": (FINETUNE, "defuse.finetune.run:run"),
    "sweep": ((*SWEEP, "--plan"), ""),
    "experiment": ((*EXPERIMENT, "--plan"), ""),
    "tofu": (TOFU, ""),
    "reproduce": (REPRODUCE, "defuse.experiments.reproduce.run:run"),
    "theory": (THEORY, "defuse.experiments.theory.run:run"),
    "real": (split("real --model model --plan"), ""),
    "lab": (split("lab --plan"), ""),
    "recipes": (split("recipes"), ""),
}


def options() -> Iterator[Kind]:
    """Every option of every verb, with a hostile text."""
    for verb, (command, stop) in VERBS.items():
        flags = st.sampled_from(_flags(verb.partition(",")[0]) or [""])
        pairs = st.tuples(flags, texts()).map(lambda pair: tuple(each for each in pair if each))
        alone = texts().map(lambda text: (text,))
        numbers = st.tuples(
            flags, st.sampled_from(("-1", "0", "1e9", "1000000000", "1" + "0" * 30, "nan"))
        )
        arguments = st.one_of(pairs, pairs, numbers, alone)
        yield Kind(f"options of {verb}", (command,), arguments=arguments, check_only=stop)


def _flags(verb: str) -> list[str]:
    """The options with a value, by the verb's signature."""
    function = cli.lab.registered_callback.callback if verb == "lab" else getattr(cli, verb)  # type: ignore[union-attr]
    if not callable(function):
        return []
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint, *about = get_args(parameter.annotation) or (bool,)
        is_flag = hint is bool or "ArgumentInfo" in str(type(about[0] if about else None))
        own = list(getattr(about[0], "param_decls", ()) or ()) if about else []
        if not is_flag:
            found.append(own[0] if own else f"--{name.replace('_', '-')}")
    return found


def data() -> Iterator[Kind]:
    """Texts, questions and tokens, in every kind of file."""
    for suffix in ("jsonl", "json", "csv", "parquet"):
        yield _file(f"questions.{suffix}", f"asked.{suffix}", _asks("model", f"asked.{suffix}"))
        for name in ("texts", "pairs"):
            source = f"topics.0.forget={name}.{suffix}"
            yield _file(f"{name}.{suffix}", f"{name}.{suffix}", (*PLAN, source))
    tokens = _asks("model", more="--perturb terms.txt --control controls.txt")
    drawn = _asks("model", more="--perturb terms.txt --control-corpus corpus.txt")
    yield _file(
        "texts.txt",
        "forget.txt",
        PLAN,
        (*PLAN, "topics.0.forget={source: forget.txt, raw_lines: true}"),
    )
    yield _file("tokens", "terms.txt", tokens, drawn)
    yield _file("control tokens", "controls.txt", tokens)
    yield _file("control corpus", "corpus.txt", drawn)
    yield _file("prompts", "prompts.txt", _asks("model", more="--generate prompts.txt"))
    yield _file("passage", "retain.txt", _asks("model", more="--text retain.txt"))
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
        yield _file(f"{name}.json", file, _asks("model"), UNLEARN, share=share)
    yield _file("tokenizer_config.json", "model/tokenizer_config.json", _asks("model"), UNLEARN)
    weights = "model/model.safetensors"
    yield _file("model.safetensors", weights, _asks("model"), UNLEARN, share=3)
    both = (_asks("sharded"), (*UNLEARN, "model=sharded"))
    yield _file("index", "sharded/model.safetensors.index.json", *both, share=2)
    gguf = (_asks("gguf"), _asks("gguf/tiny.gguf"), (*UNLEARN, "model=gguf"))
    yield _file("GGUF", "gguf/tiny.gguf", *gguf, share=4)
    adapter = (_asks("adapter"), (*UNLEARN, "model=adapter"))
    yield _file("adapter_config.json", "adapter/adapter_config.json", *adapter, share=3)
    yield _file("adapter's weights", "adapter/adapter_model.safetensors", *adapter, share=2)


def saved() -> Iterator[Kind]:
    """What Defuse wrote and reads again."""
    asks = _asks("model")
    by_command = {
        "unfinished unlearning": (UNLEARN, "unlearned.partial/run.json", False),
        "unlearning's state": (UNLEARN, "unlearned.partial/state.safetensors", False),
        "unlearning's record": (UNLEARN, "unlearned/run.json", True),
        "fine-tuning's record": (FINETUNE, "tuned/run.json", True),
        "evaluation's journal": (asks, "result.json.partial/*/0.jsonl", False),
        "attack's result": (QUANTISE, "attacked/quantise.json", True),
        "experiment's answers": (EXPERIMENT, "compared/*/*.json", True),
        "reproduced row": (REPRODUCE, "reproduced/rows/*.json", True),
        "reproduced rows": (REPRODUCE, "reproduced/reproduce.json", True),
    }
    for name, (command, file, is_finished) in by_command.items():
        change = _either({**mutate.BY_SUFFIX, **BINARY}[Path(file).suffix])
        yield Kind(name, (command,), file, change, made_by=command, is_finished=is_finished)


def all_kinds() -> dict[str, Kind]:
    """All kinds by name."""
    return {kind.name: kind for some in (recipes, options, data, models, saved) for kind in some()}
