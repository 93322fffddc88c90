"""Hidden states of every layer where a choice's text is predicted and where it ends.

The texts of a question are a tree behind its prompt, as in the evaluation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.lens.probe import alike, mask
from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_questions
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
class TextPrompt:
    """A question with the texts of its choices; the nodes `ends` are the texts' last tokens."""

    tree: TokenTree
    ends: tuple[int, ...]
    truncated: bool

    @property
    def choices(self) -> int:
        """The number of choices."""
        return len(self.ends)


def prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    length: int,
) -> list[TextPrompt]:
    """Encode the questions as they are asked, cut on the left to `length` tokens."""
    return [_prompt(each, length) for each in encode_questions(questions, settings, tokenizer)]


def _prompt(requests: Sequence[TokenPair], length: int) -> TextPrompt:
    """The evaluation's requests, and beside them the same texts read to their ends.

    The evaluation never reads a text's last token. If that is one token too many for the model, the
    second reading loses the beginning of the prompt; the first stays as in the evaluation.
    """
    room = length - max(len(request.continuation) for request in requests)
    whole = [
        replace(
            request,
            context=request.context[max(0, len(request.context) - room) :],
            continuation=(*request.continuation, 0),  # is not read: it ends the text
        )
        for request in requests
    ]
    tree, count = grow([*requests, *whole], 0, length), len(requests)
    answers = replace(tree, predicting=tree.predicting[:count], targets=tree.targets[:count])
    ends = tuple(nodes[-1] for nodes in tree.predicting[count:])
    return TextPrompt(answers, ends, any(request.is_cut(length) for request in requests))


@torch.no_grad()
def look(
    model: PreTrainedModel,
    prompts: Sequence[TextPrompt],
    token_budget: int | None = None,
    *,
    with_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the texts' summed log-probabilities, and the hidden states at their last tokens.

    The log-probabilities are (layers + 1, N, K) in float64, as the evaluation's; K is the most
    choices of a question, and -inf stands where a question has fewer. The states are (layers + 1,
    N, K, d), on the CPU, in the model's dtype, 0 where a question has fewer choices. The first is
    the embedding's, then that of each block's output. States take much memory: without
    `with_states` they are (layers + 1, 0, K, d).
    """
    decoder = Decoder(model)
    budget = token_budget or TOKEN_BUDGET.get(decoder.device.type, DEVICE_TOKEN_BUDGET)
    lengths = {place: len(prompt.tree.tokens) for place, prompt in enumerate(prompts)}
    real = mask([prompt.choices for prompt in prompts])
    shape = decoder.num_layers + 1, *real.shape
    values = torch.full(shape, -torch.inf, dtype=torch.float64)
    kept = len(prompts) if with_states else 0
    states = torch.zeros(shape[0], kept, shape[2], decoder.hidden_size, dtype=model.dtype)
    with evaluation_mode(model):
        for batch in batches_by_length(lengths, budget):
            rows, choices = real[batch].nonzero(as_tuple=True)
            at = torch.tensor(batch)[rows], choices
            seen = _layers(decoder, [prompts[place] for place in batch], rows)
            for layer, (summed, ends) in enumerate(seen):
                values[layer][at] = summed
                if with_states:
                    states[layer][at] = ends
    return values, states


def _layers(
    decoder: Decoder, prompts: Sequence[TextPrompt], rows: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `look` returns for the choices of these prompts, (choices,) and (choices, d), layer by
    layer; `rows` has the prompt of each choice."""
    batch = collate([prompt.tree for prompt in prompts], decoder.device)
    ends = torch.tensor([end for prompt in prompts for end in prompt.ends])
    hidden, inputs = decoder.embed_tree(batch.input_ids, batch.depths, visibility(batch.last, 0))
    for states in decoder.states(hidden, inputs):
        yield read_off(decoder, states, batch), states[rows, ends].cpu()


def check_labels(name: str, questions: Sequence[Question]) -> None:
    """Raise UsageError for a single question: held out, it leaves nothing to learn from."""
    if len(questions) < 2:
        raise UsageError(
            f"{name}: there is one question, and a probe needs two; give more questions, or "
            "lens.folds 0 for no probe"
        )


def strata(labels: Sequence[int]) -> Sequence[int]:
    """The groups that are dealt evenly to the folds: one, since the place of the right text means
    nothing."""
    return [0] * len(labels)


def shuffled(labels: Sequence[int], counts: Sequence[int], draws: torch.Generator) -> list[int]:
    """Draw the right text of each question anew: nothing is left for a probe to find.

    Chance is then 1 / choices even if the first text was always the right one.
    """
    drawn = list(labels)
    for places in alike(counts):
        count = counts[places[0]]
        numbers = torch.randint(count, (len(places),), generator=draws).tolist()
        for place, number in zip(places, numbers, strict=True):
            drawn[place] = number
    return drawn
