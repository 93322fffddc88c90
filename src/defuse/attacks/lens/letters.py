"""Hidden states of every layer where a letter is predicted, and the letters they predict."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.lens.probe import alike
from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_questions
from defuse.evaluate.loglikelihood import DEVICE_TOKEN_BUDGET, TOKEN_BUDGET, batches_by_length
from defuse.models.decoder import Decoder
from defuse.models.freeze import evaluation_mode
from defuse.models.lm_head import chunks
from defuse.questions import Question, continuations
from defuse.utils.errors import UsageError
from defuse.utils.precision import upcast


@dataclass(frozen=True)
class LetterPrompt:
    """Token ids of a question up to where a letter is predicted, and the ids of its letters."""

    ids: tuple[int, ...]
    letters: tuple[int, ...]
    truncated: bool

    @property
    def choices(self) -> int:
        """The number of choices."""
        return len(self.letters)


def prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    length: int,
) -> list[LetterPrompt]:
    """Encode the questions as they are asked, cut on the left to `length` tokens.

    Raises UsageError for a letter of several tokens.
    """
    asked = encode_questions(questions, settings, tokenizer)
    for question, requests in zip(questions, asked, strict=True):
        for letter, request in zip(continuations(question, "letters"), requests, strict=True):
            if len(request.continuation) != 1:
                raise UsageError(
                    f"tokenizer: the letter {letter.strip()} behind 'Answer:' takes several "
                    "tokens, and the lens reads one; use --score cloze, or leave this attack out"
                )
    return [
        LetterPrompt(
            requests[0].inputs(length),
            tuple(request.continuation[0] for request in requests),
            requests[0].is_cut(length),
        )
        for requests in asked
    ]


@torch.no_grad()
def look(
    model: PreTrainedModel,
    prompts: Sequence[LetterPrompt],
    token_budget: int | None = None,
    *,
    with_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the letters, and hidden states, at each prompt's last token.

    The log-probabilities are (layers + 1, N, K), K the most choices of a question, -inf where a
    question has fewer; the states are (layers + 1, N, d), on the CPU, in the model's dtype. The
    first is the embedding's, then that of each block's output. States take much memory: without
    `with_states` they are (layers + 1, 0, d).
    """
    decoder = Decoder(model)
    budget = token_budget or TOKEN_BUDGET.get(decoder.device.type, DEVICE_TOKEN_BUDGET)
    lengths = {place: len(prompt.ids) for place, prompt in enumerate(prompts)}
    most = max(prompt.choices for prompt in prompts)
    values = torch.full((decoder.num_layers + 1, len(prompts), most), -torch.inf)
    kept = len(prompts) if with_states else 0
    states = torch.empty(decoder.num_layers + 1, kept, decoder.hidden_size, dtype=model.dtype)
    with evaluation_mode(model):
        for batch in batches_by_length(lengths, budget):
            seen = _last_states(decoder, [prompts[place].ids for place in batch])
            values[:, batch] = _letters(decoder, seen, [prompts[p] for p in batch], most).cpu()
            if with_states:
                states[:, batch] = seen.cpu()
    return values, states


def _last_states(decoder: Decoder, rows: Sequence[Sequence[int]]) -> Tensor:
    """(layers + 1, rows, d) at each row's last token; padding is on its right."""
    time = max(map(len, rows))
    padded = [[*row, *[0] * (time - len(row))] for row in rows]
    ids = torch.tensor(padded, device=decoder.device)
    hidden, inputs = decoder.embed(ids, lengths=[len(row) for row in rows])
    at = torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])
    return torch.stack([states[at] for states in decoder.states(hidden, inputs)])


def _letters(
    decoder: Decoder, states: Tensor, prompts: Sequence[LetterPrompt], most: int
) -> Tensor:
    """log p of the letters, (layers, N, most), from states (layers, N, d) as if they were the last
    layer's."""
    padded = [[*each.letters, *[0] * (most - each.choices)] for each in prompts]
    real = [[place < each.choices for place in range(most)] for each in prompts]
    flat = states.flatten(0, 1)
    wanted = torch.tensor(padded, device=states.device).repeat(len(states), 1)
    values = []
    for some in chunks(len(flat), decoder.vocab_size):
        logits = upcast(decoder.logits(flat[some]))
        values.append(logits.gather(1, wanted[some]) - logits.logsumexp(dim=1, keepdim=True))
    found = torch.cat(values).view(len(states), -1, most)
    return found.where(torch.tensor(real, device=found.device), -torch.inf)


def check_labels(name: str, questions: Sequence[Question]) -> None:
    """Raise UsageError unless each letter is right twice: held out once, it is still learnt."""
    labels = [question.answer for question in questions]
    letters = range(max(len(question.choices) for question in questions))
    fewest = min(labels.count(letter) for letter in letters)
    if fewest < 2:
        raise UsageError(
            f"{name}: a letter is right in {fewest} of {len(labels)} questions, and a probe needs "
            "two of each; give more questions, or lens.folds 0 for no probe"
        )


def strata(labels: Sequence[int]) -> Sequence[int]:
    """The groups that are dealt evenly to the folds: the letters."""
    return labels


def shuffled(labels: Sequence[int], counts: Sequence[int], draws: torch.Generator) -> list[int]:
    """Deal the labels out anew over the questions with as many choices (Hewitt & Liang 1909.03368):
    nothing is left for a probe to find."""
    dealt = list(labels)
    for places in alike(counts):
        order = torch.randperm(len(places), generator=draws).tolist()
        for place, other in zip(places, order, strict=True):
            dealt[place] = labels[places[other]]
    return dealt
