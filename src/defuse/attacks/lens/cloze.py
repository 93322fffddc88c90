"""Every layer's hidden states where a choice's text is predicted and where it ends.

A question's four texts stand as a tree behind its prompt, as in the evaluation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.lens.asked import fours
from defuse.evaluate import Settings
from defuse.evaluate.loglikelihood import (
    DEVICE_TOKEN_BUDGET,
    TOKEN_BUDGET,
    batches_by_length,
    read_off,
)
from defuse.evaluate.token_tree import TokenPair, TokenTree, collate, grow, visibility
from defuse.models.decoder import Decoder
from defuse.models.freeze import evaluation_mode
from defuse.questions import Question
from defuse.utils.errors import UsageError


@dataclass(frozen=True)
class Prompt:
    """A question with its four texts; the nodes `ends` are the texts' last tokens."""

    tree: TokenTree
    ends: tuple[int, ...]
    truncated: bool


def prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    length: int,
) -> list[Prompt]:
    """The questions as they are asked, cut on the left to `length` tokens."""
    return [_prompt(four, length) for four in fours(tokenizer, questions, settings)]


def _prompt(four: Sequence[TokenPair], length: int) -> Prompt:
    """The evaluation's requests, and beside them the same texts read to their ends.

    The evaluation never reads a text's last token. Where that is one token too many for the model,
    the second reading loses the prompt's beginning, and the first stays the evaluation's own.
    """
    room = length - max(len(request.continuation) for request in four)
    whole = [
        replace(
            request,
            context=request.context[max(0, len(request.context) - room) :],
            continuation=(*request.continuation, 0),  # is not read: it ends the text
        )
        for request in four
    ]
    tree = grow([*four, *whole], 0, length)
    answers = replace(tree, predicting=tree.predicting[:4], targets=tree.targets[:4])
    ends = tuple(nodes[-1] for nodes in tree.predicting[4:])
    return Prompt(answers, ends, any(request.is_cut(length) for request in four))


@torch.no_grad()
def look(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    token_budget: int | None = None,
    *,
    with_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """The texts' summed log-probabilities (layers + 1, N, 4), in float64 as the evaluation's, and
    the hidden states at their last tokens (layers + 1, N, 4, d).

    Of the embedding, then behind each block. On the CPU, the states in the model's own dtype;
    unless `with_states` they are of no question: they fill memory.
    """
    decoder = Decoder(model)
    budget = token_budget or TOKEN_BUDGET.get(decoder.device.type, DEVICE_TOKEN_BUDGET)
    lengths = {place: len(prompt.tree.tokens) for place, prompt in enumerate(prompts)}
    shape = decoder.num_layers + 1, len(prompts), 4
    values = torch.empty(shape, dtype=torch.float64)
    kept = len(prompts) if with_states else 0
    states = torch.empty(shape[0], kept, 4, decoder.hidden_size, dtype=model.dtype)
    with evaluation_mode(model):
        for batch in batches_by_length(lengths, budget):
            seen = _layers(decoder, [prompts[place] for place in batch])
            for place, (summed, ends) in enumerate(seen):
                values[place, batch] = summed
                if with_states:
                    states[place, batch] = ends
    return values, states


def _layers(decoder: Decoder, prompts: Sequence[Prompt]) -> Iterator[tuple[Tensor, Tensor]]:
    """What `look` gives of these prompts, (rows, 4) and (rows, 4, d), place by place."""
    batch = collate([prompt.tree for prompt in prompts], decoder.device)
    rows = torch.arange(len(prompts))[:, None]
    ends = torch.tensor([prompt.ends for prompt in prompts])
    hidden, inputs = decoder.embed_tree(batch.input_ids, batch.depths, visibility(batch.last, 0))
    for layer in range(decoder.num_layers + 1):
        yield read_off(decoder, hidden, batch).view(-1, 4), hidden[rows, ends].cpu()
        if layer < decoder.num_layers:
            hidden = decoder.run(hidden, inputs, layer, layer + 1)


def check_labels(name: str, labels: Sequence[int]) -> None:
    """Raise UsageError for a single question: held out, it leaves a probe none to learn from."""
    if len(labels) < 2:
        raise UsageError(
            f"{name}: there is one question, and a probe needs two; give more questions, or "
            "lens.folds 0 for no probe"
        )


def strata(labels: Sequence[int]) -> Sequence[int]:
    """Nothing is dealt out evenly over a probe's folds: which place is right means nothing."""
    return [0] * len(labels)


def mixed(labels: Sequence[int], draws: torch.Generator) -> list[int]:
    """A probe's labels with nothing to be found in them: which text is right is drawn anew for each
    question, so that chance is 1/4 even where the first always was."""
    return torch.randint(4, (len(labels),), generator=draws).tolist()
