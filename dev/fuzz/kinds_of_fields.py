"""Kinds whose fields or options hold a hostile value."""

import inspect
from collections.abc import Iterator, Sequence
from typing import get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from defuse import cli
from defuse.experiments.synthetic.scenario import Options
from dev.fuzz import fields, mutate
from dev.fuzz.commands import (
    ATTACK,
    BENCHMARK,
    EXPERIMENT,
    FINETUNE,
    PLAN,
    REPRODUCE,
    SWEEP,
    THEORY,
    TOFU,
    asks,
)
from dev.fuzz.kinds import Change, Command, Kind, split
from dev.fuzz.values import texts, yaml_values


def _fields(paths: Sequence[fields.Path]) -> Change:
    return lambda content: mutate.changed_yaml(content, paths)


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
    "evaluate": (asks("model"), ""),
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
