"""Questions in forms of an attack's own, scored as the evaluation scores its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.evaluate import MCAnswer, Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.loglikelihood import max_length, score
from defuse.models.decoder import Decoder

ROW = 8  # forms of a question in one row: more share more, but attention grows with the row

Scored = list[tuple[list[float], bool]]  # of each form: four log-probabilities; cut on the left


@dataclass(frozen=True)
class Form:
    """A question as it is asked: `text`, then one of `answers`, of which number i names choice i.

    Where choices are shown in another order, `answers` still stand in the question's own.
    """

    text: str
    answers: tuple[str, ...]

    def answered(self, choice: int) -> str:
        """The question with the answer that names `choice`."""
        return self.text + self.answers[choice]

    def behind(self, prefix: str) -> "Form":
        """The same behind a description and examples."""
        return Form(prefix + self.text, self.answers)


def score_forms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forms: Sequence[Sequence[Form]],
    settings: Settings,
    per_row: int = ROW,
) -> list[Scored]:
    """The answers' log-probabilities (nats) in every form of every question.

    `per_row` forms of a question share one row, in which common beginnings are computed once.
    """
    pairs = [(form.text, answer) for each in forms for form in each for answer in form.answers]
    requests = iter(encode_pairs(pairs, tokenizer))
    groups = []
    for each in forms:
        fours = [[next(requests) for _ in form.answers] for form in each]
        rows = [fours[at : at + per_row] for at in range(0, len(fours), per_row)]
        groups.extend(list(chain.from_iterable(row)) for row in rows)
    length = max_length(model, tokenizer)
    values = score(Decoder(model), groups, max_length=length, token_budget=settings.token_budget)
    cuts = [request.is_cut(length) for group in groups for request in group]
    scored = iter(zip(chain.from_iterable(values), cuts, strict=True))
    return [[_scored([next(scored) for _ in form.answers]) for form in each] for each in forms]


def _scored(four: Sequence[tuple[float, bool]]) -> tuple[list[float], bool]:
    return [value for value, _ in four], any(cut for _, cut in four)


def mean_outcome(outcomes: Sequence[MCAnswer]) -> MCAnswer:
    """One answer made of several to the same question: each choice's mean log-probability among
    the four, so that a form whose answers are long weighs no more than others."""
    shares = torch.tensor([o.logprobs for o in outcomes], dtype=torch.float64).log_softmax(dim=1)
    cut = any(outcome.truncated for outcome in outcomes)
    return MCAnswer(outcomes[0].question, tuple(shares.mean(dim=0).tolist()), cut)
