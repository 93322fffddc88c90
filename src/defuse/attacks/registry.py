"""All kinds of attack by name; a new one is one module, and one entry here."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks import gcg, lens, orthogonalise, prune, quantise, relearn, rephrase, triggers
from defuse.attacks.data import FORGET, RETAIN, Material
from defuse.attacks.notes import Notes
from defuse.attacks.results import Result
from defuse.models.decoder import Decoder
from defuse.utils.config import parse, set_fields
from defuse.utils.errors import UsageError

REFERENCE, GOLD = "reference", "gold"
MANY = 10**9  # tokens: what a model reads that sets no bound


@dataclass(frozen=True)
class Target:
    """The attacked model and what goes with it.

    `reference`: the model before unlearning. `gold`: one that never knew the forget set. Raises
    UsageError if either cannot be asked what the model is asked.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    material: Material
    reference: PreTrainedModel | None = None
    gold: PreTrainedModel | None = None

    def __post_init__(self) -> None:
        for part, other in ((REFERENCE, self.reference), (GOLD, self.gold)):
            if other is not None:
                _check_reads_alike(part, Decoder(other), Decoder(self.model), self.tokenizer)


def _check_reads_alike(
    part: str, other: Decoder, attacked: Decoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Tokens that were added may lie behind the embeddings of a model before they were.
    written = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    tokens = min(attacked.num_embeddings, 1 + max(written, default=0))
    if other.num_embeddings < tokens:
        raise UsageError(
            f"{part}: has {other.num_embeddings} embeddings, and the tokenizer {tokens} tokens; "
            "give a model of the attacked one's vocabulary"
        )
    if (other.max_positions or MANY) < (attacked.max_positions or MANY):
        raise UsageError(
            f"{part}: reads {other.max_positions} tokens, and the attacked model "
            f"{attacked.max_positions or 'any number'}; give one that reads as many"
        )


@dataclass(frozen=True)
class Kind:
    """An attack: the module with its `run`, and its settings (a frozen dataclass).

    `main`: which conditions stand in a table of several models: no layer and no way that was chosen
    on the questions it is reported on. `needs` and `uses`: other models (`REFERENCE`, `GOLD`) it
    cannot do without, or compares with. `reads_texts`: whether texts matter; `texts`: the sets of
    which there must be some, by the settings.
    """

    module: Any
    config: type
    main: re.Pattern[str] = re.compile(".*")
    needs: Sequence[str] = ()
    uses: Sequence[str] = ()
    reads_texts: bool = False
    texts: Callable[[Any], Sequence[str]] = lambda _: ()

    @property
    def others(self) -> set[str]:
        """The other models that are loaded if they are given."""
        return {*self.needs, *self.uses}

    def run(self, target: Target, config: object, notes: Notes) -> Result:
        """The module's `run`, given those of the other models that it looks at."""
        others = {part: getattr(target, part) for part in self.others}
        return self.module.run(
            target.model, target.tokenizer, target.material, config, notes=notes, **others
        )


# The quick ones first: their results are there soonest.
KINDS: Mapping[str, Kind] = {
    quantise.KIND: Kind(quantise, quantise.Quantisation),
    lens.KIND: Kind(
        lens,
        lens.Lens,
        main=re.compile(".*, chosen layer"),
        uses=(REFERENCE,),
    ),
    orthogonalise.KIND: Kind(
        orthogonalise,
        orthogonalise.Orthogonalisation,
        main=re.compile("(all|strongest|weights)(, random direction)?|each, chosen layer"),
        needs=(REFERENCE,),
        reads_texts=True,
        texts=lambda config: (FORGET,) if config.source == FORGET else (FORGET, RETAIN),
    ),
    prune.KIND: Kind(prune, prune.Pruning, reads_texts=True, texts=lambda _: (FORGET, RETAIN)),
    rephrase.KIND: Kind(
        rephrase,
        rephrase.Rephrasing,
        main=re.compile("vote over (orders|all ways)|best way, .*"),
        uses=(REFERENCE,),
    ),
    triggers.KIND: Kind(
        triggers,
        triggers.TriggerSearch,
        main=re.compile("worst of .*|all .*"),
        reads_texts=True,
        uses=(REFERENCE,),
    ),
    gcg.KIND: Kind(gcg, gcg.GCG, main=re.compile("random suffix|.*, (held out|each question)")),
    relearn.KIND: Kind(
        relearn,
        relearn.Relearning,
        main=re.compile("(forget|retain), .*"),
        uses=(GOLD,),
        reads_texts=True,
        texts=lambda config: config.source,
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
    built = {name: parse(KINDS[name].config, given.get(name, {}), name) for name in kinds}
    if seed is None:
        return built
    return {
        name: config if "seed" in given.get(name, {}) else replace(config, seed=seed)
        for name, config in built.items()
    }


def possible(
    chosen: Mapping[str, Any], material: Material, reference: object, gold: object
) -> dict[str, Any]:
    """Those of the attacks that lack nothing, neither models nor texts."""
    given = {REFERENCE: reference, GOLD: gold}
    return {
        name: config
        for name, config in chosen.items()
        if all(given[part] for part in KINDS[name].needs)
        and all(material.given_texts(each) for each in KINDS[name].texts(config))
    }
