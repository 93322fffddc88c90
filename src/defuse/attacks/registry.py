"""All attacks by name. A new attack is a folder and an entry here."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks import gcg, lens, orthogonalise, prune, quantise, relearn, rephrase, triggers
from defuse.attacks.data import FORGET, RETAIN, AttackData
from defuse.attacks.findings import Findings
from defuse.attacks.results import Result
from defuse.models.decoder import Decoder
from defuse.utils.config import parse, set_fields
from defuse.utils.errors import UsageError
from defuse.utils.progress import Progress

REFERENCE, RETRAINED = "reference", "retrained"
UNBOUNDED = 10**9  # tokens: the context length of a model that sets no bound


@dataclass(frozen=True)
class Target:
    """The attacked model, its tokenizer, the data, and other models to compare with.

    `reference`: the model before unlearning. `retrained`: one that never saw the forget set. Raises
    UsageError if either has another vocabulary or reads fewer tokens than the attacked model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: AttackData
    reference: PreTrainedModel | None = None
    retrained: PreTrainedModel | None = None

    def __post_init__(self) -> None:
        for part, other in ((REFERENCE, self.reference), (RETRAINED, self.retrained)):
            if other is not None:
                _check_comparable(part, Decoder(other), Decoder(self.model), self.tokenizer)


def _check_comparable(
    part: str, other: Decoder, attacked: Decoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Added tokens may have no embedding in a model from before they were added.
    written = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    tokens = min(attacked.num_embeddings, 1 + max(written, default=0))
    if other.num_embeddings < tokens:
        raise UsageError(
            f"{part}: has {other.num_embeddings} embeddings, and the tokenizer {tokens} tokens; "
            "give a model with the vocabulary of the attacked one"
        )
    if (other.max_positions or UNBOUNDED) < (attacked.max_positions or UNBOUNDED):
        raise UsageError(
            f"{part}: reads {other.max_positions} tokens, and the attacked model "
            f"{attacked.max_positions or 'any number'}; give one that reads as many"
        )


@dataclass(frozen=True)
class AttackSpec:
    """An attack: its settings (a frozen dataclass), and its functions `check` and `run`.

    `check(model, tokenizer, data, config, **others)` raises UsageError for everything that the
    attack refuses; it reads no weights. `needs` and `uses`: other models (`REFERENCE`, `RETRAINED`)
    that it requires, and that it compares with if they are given. `reads_texts`: its result depends
    on the texts. `texts`: the sets whose texts it requires, given its settings.
    """

    config: type
    check: Callable[..., None]
    run: Callable[..., Result]
    needs: Sequence[str] = ()
    uses: Sequence[str] = ()
    reads_texts: bool = False
    texts: Callable[[Any], Sequence[str]] = lambda _: ()

    @property
    def others(self) -> set[str]:
        """The other models that are loaded for it if they are given."""
        return {*self.needs, *self.uses}

    def check_target(self, target: Target, config: object) -> None:
        """Call `check` with those of the other models that the attack looks at."""
        self.check(target.model, target.tokenizer, target.data, config, **self._others_of(target))

    def run_on(
        self, target: Target, config: object, findings: Findings, progress: Progress
    ) -> Result:
        """Call `run` with those of the other models that the attack looks at."""
        others = self._others_of(target)
        return self.run(
            target.model,
            target.tokenizer,
            target.data,
            config,
            **others,
            findings=findings,
            progress=progress,
        )

    def _others_of(self, target: Target) -> dict[str, PreTrainedModel | None]:
        return {part: getattr(target, part) for part in self.others}


# The quick ones first: their results are there soonest.
ATTACKS: Mapping[str, AttackSpec] = {
    quantise.NAME: AttackSpec(quantise.Quantisation, quantise.check, quantise.run),
    lens.NAME: AttackSpec(lens.Lens, lens.check, lens.run, uses=(REFERENCE,)),
    orthogonalise.NAME: AttackSpec(
        orthogonalise.Orthogonalisation,
        orthogonalise.check,
        orthogonalise.run,
        needs=(REFERENCE,),
        reads_texts=True,
        texts=lambda config: (FORGET,) if config.source == FORGET else (FORGET, RETAIN),
    ),
    prune.NAME: AttackSpec(
        prune.Pruning,
        prune.check,
        prune.run,
        reads_texts=True,
        texts=lambda _: (FORGET, RETAIN),
    ),
    rephrase.NAME: AttackSpec(rephrase.Rephrasing, rephrase.check, rephrase.run, uses=(REFERENCE,)),
    triggers.NAME: AttackSpec(
        triggers.TriggerSearch, triggers.check, triggers.run, uses=(REFERENCE,), reads_texts=True
    ),
    gcg.NAME: AttackSpec(gcg.GCG, gcg.check, gcg.run),
    relearn.NAME: AttackSpec(
        relearn.Relearning,
        relearn.check,
        relearn.run,
        uses=(RETRAINED,),
        reads_texts=True,
        texts=lambda config: config.source,
    ),
}


def make_configs(
    attacks: Sequence[str],
    overrides: Sequence[str] = (),
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the configuration of each attack, with overrides such as "quantise.bits=[4]".

    `settings`: fields by the attack's name, or None for one that has its defaults. Raises
    UsageError for an attack that does not exist, and for the first override that is wrong.
    """
    for name in attacks:
        if name not in ATTACKS:
            remedy = _suggestion(name) or f"use one of {', '.join(ATTACKS)}"
            raise UsageError(f"kind: {name!r} is unknown; {remedy}")
    given = deepcopy(dict(settings or {}))
    set_fields(given, overrides)
    if other := given.keys() - set(attacks):
        name = min(other)
        hint = None if name in ATTACKS else _suggestion(name)
        remedy = hint or f"write KIND.FIELD=VALUE with one of {', '.join(attacks)}"
        raise UsageError(f"set: {name!r} is none of the attacks to run; {remedy}")
    built = {name: parse(ATTACKS[name].config, given.get(name) or {}, name) for name in attacks}
    if seed is None:
        return built
    return {
        name: config if "seed" in (given.get(name) or {}) else replace(config, seed=seed)
        for name, config in built.items()
    }


def _suggestion(name: str) -> str | None:
    """What may have been meant, such as "quantise" by "quantize"."""
    close = get_close_matches(name, ATTACKS, n=1)
    return f"did you mean {close[0]!r}?" if close else None
