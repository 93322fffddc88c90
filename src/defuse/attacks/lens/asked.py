"""Questions as a lens reads them: as the evaluation asks them."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.token_tree import TokenPair
from defuse.questions import Question, ask, continuations, few_shot_part


def fours(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], settings: Settings
) -> list[list[TokenPair]]:
    """Each question's prompt with each of its four answers, letters or texts."""
    score = settings.score
    before = few_shot_part(settings.subject, settings.few_shot, score)
    pairs = [
        (before + ask(question, score), answer)
        for question in questions
        for answer in continuations(question, score)
    ]
    requests = encode_pairs(pairs, tokenizer)
    return [requests[at : at + 4] for at in range(0, len(requests), 4)]
