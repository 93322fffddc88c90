"""Prompts that an attack words itself, scored as the evaluation scores its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.evaluate import MCAnswer, Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.token_tree import TokenPair
from defuse.models.decoder import Decoder

ROW = 8  # prompts of a question in one row: more share more, but attention grows with the row

Scored = list[tuple[list[float], bool]]  # for each prompt: log-probabilities, cut on the left


@dataclass(frozen=True)
class Prompt:
    """A wording of a question: `text`, then one of `answers`, of which number i means choice i.

    If the choices are shown in another order, `answers` keep the question's own order.
    """

    text: str
    answers: tuple[str, ...]

    def answered(self, choice: int) -> str:
        """The prompt with the answer that means `choice`."""
        return self.text + self.answers[choice]

    def behind(self, prefix: str) -> "Prompt":
        """The same prompt after `prefix`, such as a description and examples."""
        return Prompt(prefix + self.text, self.answers)


def prompt_requests(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[list[TokenPair]]:
    """Encode each prompt with each of its answers."""
    pairs = [(prompt.text, answer) for prompt in prompts for answer in prompt.answers]
    requests = iter(encode_pairs(pairs, tokenizer))
    return [[next(requests) for _ in prompt.answers] for prompt in prompts]


def score_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Prompt]],
    settings: Settings,
    per_row: int = ROW,
) -> list[Scored]:
    """Return the answers' log-probabilities (nats) for every prompt of every question.

    `per_row` prompts of a question share a row, in which common beginnings are computed once.
    """
    encoded = iter(prompt_requests(tokenizer, list(chain.from_iterable(prompts))))
    groups: list[list[TokenPair]] = []
    for each in prompts:
        requests = [next(encoded) for _ in each]
        rows = [requests[at : at + per_row] for at in range(0, len(requests), per_row)]
        groups.extend(list(chain.from_iterable(row)) for row in rows)
    length = max_length(model, tokenizer)
    values = score(Decoder(model), groups, max_length=length, token_budget=settings.token_budget)
    cuts = [request.is_cut(length) for group in groups for request in group]
    scored = iter(zip(chain.from_iterable(values), cuts, strict=True))
    return [[_scored([next(scored) for _ in p.answers]) for p in each] for each in prompts]


def _scored(answers: Sequence[tuple[float, bool]]) -> tuple[list[float], bool]:
    return [value for value, _ in answers], any(cut for _, cut in answers)


def mean_outcome(outcomes: Sequence[MCAnswer]) -> MCAnswer:
    """Combine several answers to one question into one.

    It is the mean of each choice's log-probability among the choices, so that a prompt with long
    answers weighs no more than others.
    """
    shares = torch.tensor([o.logprobs for o in outcomes], dtype=torch.float64).log_softmax(dim=1)
    cut = any(outcome.truncated for outcome in outcomes)
    return MCAnswer(outcomes[0].question, tuple(shares.mean(dim=0).tolist()), cut)
