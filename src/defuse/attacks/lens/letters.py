"""Every layer's hidden state where a letter is predicted, and what it says as the last layer's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.lens.asked import fours
from defuse.evaluate import Settings
from defuse.evaluate.loglikelihood import DEVICE_TOKEN_BUDGET, TOKEN_BUDGET, batches_by_length
from defuse.models.decoder import Decoder
from defuse.models.freeze import evaluation_mode
from defuse.models.lm_head import chunks
from defuse.questions import Question
from defuse.utils.errors import UsageError
from defuse.utils.precision import upcast


@dataclass(frozen=True)
class Prompt:
    """A question's tokens up to where a letter is predicted, and the four letters' ids."""

    ids: tuple[int, ...]
    letters: tuple[int, ...]
    truncated: bool


def prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    length: int,
) -> list[Prompt]:
    """The questions as they are asked, cut on the left to `length` tokens."""
    asked = fours(tokenizer, questions, settings)
    if any(len(request.continuation) != 1 for four in asked for request in four):
        raise UsageError(
            "tokenizer: a letter behind 'Answer:' takes several tokens, and a lens reads one; "
            "ask by --score cloze, or attack this model by another kind"
        )
    return [
        Prompt(
            four[0].inputs(length),
            tuple(request.continuation[0] for request in four),
            four[0].is_cut(length),
        )
        for four in asked
    ]


@torch.no_grad()
def look(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    token_budget: int | None = None,
    *,
    with_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """The letters' log-probabilities (layers + 1, N, 4) and hidden states (layers + 1, N, d).

    Both at each prompt's last token: of the embedding, then behind each block. On the CPU, the
    states in the model's own dtype; unless `with_states` they are of no prompt: they fill memory.
    """
    decoder = Decoder(model)
    budget = token_budget or TOKEN_BUDGET.get(decoder.device.type, DEVICE_TOKEN_BUDGET)
    lengths = {place: len(prompt.ids) for place, prompt in enumerate(prompts)}
    values = torch.empty(decoder.num_layers + 1, len(prompts), 4)
    kept = len(prompts) if with_states else 0
    states = torch.empty(decoder.num_layers + 1, kept, decoder.hidden_size, dtype=model.dtype)
    with evaluation_mode(model):
        for batch in batches_by_length(lengths, budget):
            seen = _last_states(decoder, [prompts[place].ids for place in batch])
            letters = torch.tensor([prompts[place].letters for place in batch])
            values[:, batch] = _letters(decoder, seen, letters.to(seen.device)).cpu()
            if with_states:
                states[:, batch] = seen.cpu()
    return values, states


def _last_states(decoder: Decoder, rows: Sequence[Sequence[int]]) -> Tensor:
    """(layers + 1, rows, d) at each row's last token; padding stands on the right of it."""
    time = max(map(len, rows))
    padded = [[*row, *[0] * (time - len(row))] for row in rows]
    hidden, inputs = decoder.embed(torch.tensor(padded, device=decoder.device))
    at = torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])
    seen = [hidden[at]]
    for layer in range(decoder.num_layers):
        hidden = decoder.run(hidden, inputs, layer, layer + 1)
        seen.append(hidden[at])
    return torch.stack(seen)


def _letters(decoder: Decoder, states: Tensor, letters: Tensor) -> Tensor:
    """log p of `letters` (N, 4) from states (layers, N, d), as if they were the last layer's."""
    flat, wanted = states.flatten(0, 1), letters.repeat(len(states), 1)
    values = []
    for some in chunks(len(flat), decoder.vocab_size):
        logits = upcast(decoder.logits(flat[some]))
        values.append(logits.gather(1, wanted[some]) - logits.logsumexp(dim=1, keepdim=True))
    return torch.cat(values).view(len(states), -1, 4)


def check_labels(name: str, labels: Sequence[int]) -> None:
    """Raise UsageError unless each letter is right twice: held out, it is then still known."""
    fewest = min(labels.count(label) for label in range(4))
    if fewest < 2:
        raise UsageError(
            f"{name}: a letter is right in {fewest} of {len(labels)} questions, and a probe needs "
            "two of each; give more questions, or lens.folds 0 for no probe"
        )


def strata(labels: Sequence[int]) -> Sequence[int]:
    """What is dealt out evenly over a probe's folds: the letters."""
    return labels


def mixed(labels: Sequence[int], draws: torch.Generator) -> list[int]:
    """A probe's labels with nothing to be found in them (after Hewitt & Liang 1909.03368): dealt
    out anew over the questions."""
    return [labels[row] for row in torch.randperm(len(labels), generator=draws).tolist()]
