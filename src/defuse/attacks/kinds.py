"""All kinds of attack by name; a new one is one module, and one entry here."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks import gcg, lens, orthogonalise, prune, quantise, relearn, rephrase, triggers
from defuse.attacks.material import Material
from defuse.attacks.notes import Notes
from defuse.attacks.results import Result
from defuse.errors import UsageError
from defuse.fields import build, set_fields

REFERENCE, GOLD = "reference", "gold"


@dataclass(frozen=True)
class Target:
    """The attacked model and what goes with it.

    `reference`: the model before unlearning. `gold`: one that never knew the forget set.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    material: Material
    reference: PreTrainedModel | None = None
    gold: PreTrainedModel | None = None


@dataclass(frozen=True)
class Kind:
    """An attack: its settings (a frozen dataclass) and how it is run.

    `main`: which conditions stand in a table of several models: none that was selected on the
    questions it is reported on. `needs` and `uses`: other models (`REFERENCE`, `GOLD`) it cannot do
    without, or compares with.
    `trains_on_texts`: whether forget texts must be given, other than questions.
    """

    config: type
    run: Callable[[Target, Any, Notes], Result]
    main: re.Pattern[str] = re.compile(".*")
    needs: Sequence[str] = ()
    uses: Sequence[str] = ()
    trains_on_texts: bool = False

    @property
    def others(self) -> set[str]:
        """The other models that are loaded if they are given."""
        return {*self.needs, *self.uses}


def _alone(module: Any) -> Callable[[Target, Any, Notes], Result]:  # noqa: ANN401 (a kind's module)
    """An attack that looks at no other model."""

    def run(t: Target, config: object, notes: Notes) -> Result:
        return module.run(t.model, t.tokenizer, t.material, config, notes=notes)

    return run


def _beside_reference(module: Any) -> Callable[[Target, Any, Notes], Result]:  # noqa: ANN401 (a kind's module)
    """An attack that looks at the model before unlearning, too."""

    def run(t: Target, config: object, notes: Notes) -> Result:
        given = {"reference": t.reference, "notes": notes}
        return module.run(t.model, t.tokenizer, t.material, config, **given)

    return run


def _beside_gold(module: Any) -> Callable[[Target, Any, Notes], Result]:  # noqa: ANN401 (a kind's module)
    """An attack that looks at a model that never knew the forget set, too."""

    def run(t: Target, config: object, notes: Notes) -> Result:
        given = {"gold": t.gold, "notes": notes}
        return module.run(t.model, t.tokenizer, t.material, config, **given)

    return run


# The quick ones first, so that what is refused is refused early.
KINDS: Mapping[str, Kind] = {
    quantise.KIND: Kind(quantise.Quantisation, _alone(quantise)),
    lens.KIND: Kind(
        lens.Lens,
        _beside_reference(lens),
        main=re.compile(".*, chosen layer"),
        uses=(REFERENCE,),
    ),
    orthogonalise.KIND: Kind(
        orthogonalise.Orthogonalisation,
        _beside_reference(orthogonalise),
        main=re.compile("(all|strongest|weights)(, random direction)?|each, chosen layer"),
        needs=(REFERENCE,),
    ),
    prune.KIND: Kind(prune.Pruning, _alone(prune)),
    rephrase.KIND: Kind(
        rephrase.Rephrasing,
        _beside_reference(rephrase),
        main=re.compile("vote over (orders|all ways)|best way, .*"),
        uses=(REFERENCE,),
    ),
    triggers.KIND: Kind(
        triggers.TriggerSearch,
        _beside_reference(triggers),
        main=re.compile("worst of .*|all .*"),
        uses=(REFERENCE,),
    ),
    gcg.KIND: Kind(gcg.GCG, _alone(gcg)),
    relearn.KIND: Kind(
        relearn.Relearning,
        _beside_gold(relearn),
        main=re.compile("(forget|retain), .*"),
        uses=(GOLD,),
        trains_on_texts=True,
    ),
}


def configs(
    kinds: Sequence[str], overrides: Sequence[str] = (), seed: int | None = None
) -> dict[str, Any]:
    """The settings of each kind, with overrides such as "quantise.bits=[4]".

    Raises UsageError for a kind that does not exist, and for the first override that is wrong.
    """
    for name in kinds:
        if name not in KINDS:
            raise UsageError(f"kind: {name!r} is unknown; use one of {', '.join(KINDS)}")
    given: dict[str, Any] = {}
    set_fields(given, overrides)
    if other := given.keys() - set(kinds):
        raise UsageError(
            f"set: {min(other)!r} is none of the attacks to run; write KIND.FIELD=VALUE with one "
            f"of {', '.join(kinds)}"
        )
    built = {name: build(KINDS[name].config, given.get(name, {}), name) for name in kinds}
    if seed is None:
        return built
    return {
        name: config if "seed" in given.get(name, {}) else replace(config, seed=seed)
        for name, config in built.items()
    }
