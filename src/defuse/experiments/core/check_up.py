"""The check-up of a run: the perplexity of neutral text, before and after unlearning."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from transformers import PreTrainedModel

from defuse.evaluate.check_up import CheckUp, as_record, check_up
from defuse.experiments.core.metrics import Answers
from defuse.experiments.core.records import records
from defuse.experiments.core.scenario import Run
from defuse.models.load import LoadedModel

KEPT = ("perplexity", "left_out", "damage")  # no run writes text
Perplexities = Mapping[str, tuple[float, float]]  # before and after, by the label of a group


def checked_up(reference: LoadedModel, before: CheckUp, model: PreTrainedModel) -> dict[str, Any]:
    """The check-up of a run's model, for its record."""
    unlearned = LoadedModel(model, reference.tokenizer, reference.name)
    found = as_record(before, check_up(unlearned, before, write=False))
    found["perplexity"] = [value if isfinite(value or 0) else None for value in found["perplexity"]]
    return {name: found[name] for name in KEPT}


def perplexities(folder: Path, answers: Answers) -> Perplexities:
    """The perplexities of each group's runs (geometric means), where all runs have them."""
    found = {}
    for label, runs in answers.groups().items():
        pairs = [_perplexity(folder, run) for run in runs]
        known = [pair for pair in pairs if pair is not None]
        if known and len(known) == len(pairs):
            before, after = (geometric_mean(values) for values in zip(*known, strict=True))
            found[label] = (before, after)
    return found


def _perplexity(folder: Path, run: Run) -> tuple[float, float] | None:
    pair = _check_up(folder, run).get("perplexity", (None, None))
    return None if None in pair else tuple(pair)


def damage_sentences(folder: Path, answers: Answers) -> Iterator[str]:
    """The groups of which a run's model is damaged, and what to try."""
    for label, runs in answers.groups().items():
        said = [each for run in runs if (each := _check_up(folder, run).get("damage"))]
        if said:
            yield f"{label}, {len(said)} of {len(runs)} runs: {said[0]}."


def left_out_sentences(folder: Path, runs: Sequence[Run]) -> Iterator[str]:
    """Why the perplexity of neutral text is left out, each reason once."""
    reasons = (_check_up(folder, run).get("left_out") for run in runs)
    for reason in dict.fromkeys(each for each in reasons if each):
        yield f"The perplexity is left out: it {reason}."


def _check_up(folder: Path, run: Run) -> Mapping[str, Any]:
    """The check-up in a run's record; versions before had none."""
    return (records(folder).get(run.name) or {}).get("check_up", {})
