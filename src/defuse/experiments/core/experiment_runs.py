"""The runs of an experiment file: methods, defences and seeds, each a recipe."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from defuse.experiments.core.experiment_file import Experiment
from defuse.experiments.core.scenario import Run
from defuse.methods import METHODS
from defuse.questions import load_tokens
from defuse.recipes import find_recipe
from defuse.unlearning.config import Topic
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import parse, read_fields
from defuse.utils.errors import UsageError, require

TUNING_SEED = 1000  # of tuning runs: no report uses it
# A recipe's fields that follow from the experiment's own.
FILLED = ("model", "revision", "output", "topics", "seed", "device", "dtype")
TOPIC_FIELDS = {each.name for each in fields(Topic)} - {"name", "forget", "retain"}
DEFENCE_FIELDS = {"rna": ("std", "variance"), "mixing": ("share", "tokens")}


def make_runs(
    experiment: Experiment, output: Path, mixing: Sequence[str], *, tune: bool
) -> Iterator[Run]:
    methods = experiment.compare["methods"]
    if isinstance(methods, list):
        methods = {name: {} for name in methods}
    defences = [
        each for given in experiment.compare.get("defences", ["none"]) for each in _expand(given)
    ]
    seeds = [TUNING_SEED] if tune else experiment.compare.get("seeds", [0])
    trials = (
        _trials(experiment, methods) if tune else [(n, own or {}, ()) for n, own in methods.items()]
    )
    if tune:
        defences = [{}, *_tuned_defences(experiment)]
    for seed in seeds:
        for name, own, settings in trials:
            for defence in defences if not (tune and settings) else [{}]:
                yield _run(experiment, output, mixing, name, own, settings, defence, seed)


def _trials(
    experiment: Experiment, methods: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """Each method as it is, then with every combination of the values that `tune` names."""
    for name, own in methods.items():
        yield name, own or {}, ()
        values = experiment.tune.get(name, {})
        for chosen in product(*values.values()):
            tried = dict(zip(values, chosen, strict=True))
            yield name, {**(own or {}), **tried}, tuple(f"{k}={v}" for k, v in tried.items())


def _tuned_defences(experiment: Experiment) -> list[dict[str, dict[str, Any]]]:
    given = [{name: experiment.tune[name]} for name in DEFENCE_FIELDS if name in experiment.tune]
    return [each for defence in given for each in _expand(defence)]


def parts(given: object) -> dict[str, Any]:
    """A defence as written, such as "none" or {rna: {std: 1x}}, as its parts."""
    parts = {} if given == "none" else given
    if not isinstance(parts, dict) or not set(parts) <= set(DEFENCE_FIELDS):
        raise UsageError(
            f"compare.defences: {given!r} is not a defence; write none, {{rna: {{std: 0.3x}}}}, "
            "{mixing: {share: 0.5}}, or both in one"
        )
    return parts


def _expand(given: object) -> list[dict[str, dict[str, Any]]]:
    """A defence for every combination of the values that it lists."""
    own_parts = parts(given)
    for name, own in own_parts.items():
        for each in own if isinstance(own, dict) else [own]:
            names = DEFENCE_FIELDS[name]
            require(
                each in names, f"compare.defences.{name}", each, f"is not in {', '.join(names)}"
            )
    keys = [(name, each) for name, own in own_parts.items() for each in own]
    lists = [v if isinstance(v, list) else [v] for own in own_parts.values() for v in own.values()]
    found = []
    for chosen in product(*lists):
        defence: dict[str, dict[str, Any]] = {name: {} for name in own_parts}
        for (name, each), value in zip(keys, chosen, strict=True):
            defence[name][each] = value
        found.append(defence)
    return found


def _run(
    experiment: Experiment,
    output: Path,
    mixing: Sequence[str],
    name: str,
    own: Mapping[str, Any],
    settings: tuple[str, ...],
    defence: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> Run:
    said = " + ".join(
        " ".join([part, *(str(v) for v in fields_.values())]) for part, fields_ in defence.items()
    )
    base = " ".join([name, *settings])
    group = f"{base}, {said}" if said else base
    run_name = "-".join(
        ["".join(c if c.isalnum() or c in "._=" else "-" for c in group), f"seed{seed}"]
    )
    place = output / "models" / run_name
    recipe = _recipe(experiment, name, {**experiment.unlearn, **own}, defence, seed, place, mixing)
    steps = recipe.training().steps
    return Run(
        name=run_name,
        group=group,
        base_group=base,
        method=name,
        retain_loss=recipe.retain.loss,
        defence="+".join(defence) or "none",
        seed=seed,
        recipe=recipe,
        checkpoints=tuple(sorted({*(c for c in experiment.checkpoints if c < steps), steps})),
        defence_settings=_flat(defence),
        settings=settings,
    )


def _flat(defence: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """The settings of a defence; with two parts their names stand in front."""
    several = len(defence) > 1
    return tuple(
        (f"{part}.{name}" if several else name, value)
        for part, own in defence.items()
        for name, value in own.items()
    )


def _recipe(
    experiment: Experiment,
    name: str,
    given: Mapping[str, Any],
    defence: Mapping[str, Mapping[str, Any]],
    seed: int,
    place: Path,
    mixing: Sequence[str],
) -> Recipe:
    """The recipe of one run: fields go to its topic, to its method, or to itself."""
    own = dict(given)
    recipe = _shipped_fields(own.pop("recipe", None))
    topic = recipe.pop("topics", [{}])[0]
    topic = {field_: value for field_, value in topic.items() if field_ in TOPIC_FIELDS}
    method = recipe.pop("method", {})
    stated = own.pop("method", {})
    method |= stated if isinstance(stated, dict) else {"name": stated}
    method.setdefault("name", name)
    where = f"compare.methods.{name}"
    kind = METHODS.get(method["name"])
    require(kind is not None, where, method["name"], f"is not a method; use {', '.join(METHODS)}")
    method_fields = {each.name for each in fields(kind)} if kind else set()
    for field_, value in own.items():
        require(field_ not in FILLED, f"{where}.{field_}", value, "follows from other fields")
        if field_ == "retain" and isinstance(value, str):
            recipe["retain"] = {"loss": value}
        elif field_ in TOPIC_FIELDS:
            topic[field_] = value
        elif field_ in method_fields:
            method[field_] = value
        else:
            recipe[field_] = value
    if "rna" in defence:
        recipe["noise"] = dict(defence["rna"])
    if "mixing" in defence:
        topic |= _mixing(experiment, defence["mixing"], place.parents[1], mixing)
    filled = {
        "model": experiment.place(experiment.model),
        "revision": experiment.revision,
        "output": str(place),
        "topics": _topics(experiment, topic),
        "seed": seed,
        "device": experiment.device,
        "dtype": experiment.dtype,
    }
    return parse(Recipe, {**recipe, "method": method, **filled}, where)


def _shipped_fields(name: str | None) -> dict[str, Any]:
    """A recipe's fields without those that the experiment fills in."""
    if name is None:
        return {}
    given = read_fields(find_recipe(name))
    return {field_: v for field_, v in given.items() if field_ == "topics" or field_ not in FILLED}


def _mixing(
    experiment: Experiment, given: Mapping[str, Any], output: Path, tokens: Sequence[str]
) -> dict[str, Any]:
    share = {"mix": given["share"]} if "share" in given else {}
    if "tokens" in given:
        source = experiment.place(str(given["tokens"]))
        load_tokens(source)
        return {"triggers": source, **share}
    if not tokens:
        raise UsageError("compare.defences.mixing: needs tokens; give perturb.forget_tokens")
    return {"triggers": str(output / "texts" / "mixing_tokens.txt"), "mix": 0.5, **share}


def _topics(experiment: Experiment, topic: Mapping[str, Any]) -> list[dict[str, Any]]:
    written = experiment.topics or [{"name": experiment.name, **(experiment.texts or {})}]
    return [
        {**topic, **own, **{k: experiment.corpus(own.get(k)) for k in ("forget", "retain")}}
        for own in written
    ]
