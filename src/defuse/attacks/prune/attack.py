"""Set-difference pruning: does the knowledge come back without units that only serve it?

Wei et al. 2402.05162, section 3: within each matrix, the units of highest score on forget texts,
except those of highest score on retain texts, are set to 0. A model may hide what it knows by few
units that retain texts do not need (Łucki et al. 2409.18025). Scores:
`defuse.attacks.prune.sensitivity`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, RETAIN, AttackData, ask_all
from defuse.attacks.findings import Findings, compute_beside
from defuse.attacks.passages import passages
from defuse.attacks.prune.config import Pruning
from defuse.attacks.prune.sensitivity import neuron_scores, weight_scores
from defuse.attacks.prune.units import ByMatrix, Choices, Chosen, reduced
from defuse.attacks.results import Result
from defuse.attacks.variants import PIECES, Made, Variant, ask_variants
from defuse.data.collate import TextBatch
from defuse.models.freeze import sharing_copy
from defuse.models.load import require_plain_weights
from defuse.utils.progress import SILENT, Progress

NAME = "prune"


def check(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: AttackData, config: Pruning
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights.

    That is quantised weights, and texts that cannot be used.
    """
    prepare(model, tokenizer, data, config)


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: AttackData, config: Pruning
) -> dict[str, list[TextBatch]]:
    """Return the texts of both sets. Raises UsageError as `check` does."""
    require_plain_weights(model, "model", "give it as it was before")
    drawing = config if config.unit == "neuron" else replace(config, batch_size=1)
    return {name: passages(model, tokenizer, data, name, drawing) for name in data.sets}


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Pruning | None = None,
    *,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Ask `model` without the units that only forget texts need, and without random ones.

    Raises UsageError as `check` does.
    """
    config, findings = config or Pruning(), findings or Findings()
    batches = prepare(model, tokenizer, data, config)
    pieces = len(data.sets) + len(batches) + 2 * PIECES * len(config.shares)
    findings.report_to(progress, NAME, pieces)
    with findings.counting(model):
        before = ask_all(model, tokenizer, data, findings, "before")
        forget, retain = (
            _tops(model, name, batches[name], config, findings) for name in (FORGET, RETAIN)
        )
        choices = Choices(forget, retain, config.keep, config.seed)
        variants = _variants(model, choices, config.shares)
        conditions, changed = ask_variants(variants, tokenizer, data, before, findings, config.seed)
    return Result(NAME, asdict(config), conditions, findings.cost, changed)


def _tops(
    model: PreTrainedModel,
    name: str,
    batches: list[TextBatch],
    config: Pruning,
    findings: Findings,
) -> Callable[[], ByMatrix]:
    """The highest scores on one set of texts.

    Scores of neurons are kept on disk. Those of weights are too many: a resumed attack computes
    them again if it needs them.
    """
    signed = config.score == "signed" and name == FORGET
    shares = config.shares if name == FORGET else [config.keep]
    if config.unit == "weight":

        def compute() -> tuple[None, ByMatrix]:
            return None, reduced(weight_scores(model, batches, signed=signed), shares)

        return compute_beside(findings, f"scores/{name}", compute)[1]

    def scores() -> dict[str, list[float]]:
        found = neuron_scores(model, batches, signed=signed)
        return {matrix: values.tolist() for matrix, values in found.items()}

    known = findings.get_or_compute(f"scores/{name}", scores)
    found = reduced({matrix: torch.tensor(values) for matrix, values in known.items()}, shares)
    return lambda: found


def _variants(
    model: PreTrainedModel, choices: Choices, shares: Sequence[float]
) -> Iterator[Variant]:
    for share in shares:
        name = f"{100 * share:g}%"
        yield Variant(name, partial(_without, model, choices.of_forget, share))
        random = partial(_without, model, choices.random, share)
        yield Variant(f"{name}, random", random, is_control=True)


def _without(model: PreTrainedModel, choose: Callable[[float], Chosen], share: float) -> Made:
    chosen = choose(share)
    numbers = {
        "pruned": float(sum(mask.sum() for mask in chosen.values())),
        "of": float(sum(mask.numel() for mask in chosen.values())),
    }
    return pruned(model, chosen), numbers


@torch.no_grad()
def pruned(model: PreTrainedModel, chosen: Chosen) -> PreTrainedModel:
    """Return a copy with units set to 0; all tensors but those named in `chosen` are shared.

    A mask has the shape of its parameter, or is over its inputs (inputs,): the neurons before it.
    """
    copy = sharing_copy(model, [model.get_parameter(name) for name in chosen])
    for name, mask in chosen.items():
        module, weight = copy.get_submodule(name.removesuffix(".weight")), copy.get_parameter(name)
        if mask.ndim == 1 and not isinstance(module, nn.Linear):
            mask = mask[:, None]
        weight.masked_fill_(mask.to(weight.device), 0)
    return copy
