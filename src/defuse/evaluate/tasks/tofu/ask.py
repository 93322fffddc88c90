"""TOFU's questions to a model: log-probabilities of all answers, and the model's own answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defuse.data.examples import make_examples
from defuse.data.text import QuestionAnswer, Text, as_chat
from defuse.evaluate.generation import generate
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.tasks.tofu.data import Item
from defuse.evaluate.tasks.tofu.metrics import rouge_l_recall
from defuse.evaluate.token_tree import TokenPair
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT, Progress

NEW_TOKENS = 128  # longer than any of TOFU's answers


@dataclass(frozen=True)
class Answered:
    """A model's results on one question.

    `logprob`, `paraphrased`, `perturbed`: mean log-probability per token (nats) of the answer, of
    its paraphrase and of the wrong answers, each with its end-of-text token. `written`: the model's
    own greedy answer, and `rouge` its ROUGE-L recall of the right one.
    """

    question: str
    answer: str
    logprob: float
    paraphrased: float
    perturbed: tuple[float, ...]
    written: str
    rouge: float


Sets = Mapping[str, Sequence[Answered]]


def ask(
    loaded: LoadedModel,
    sets: Mapping[str, Sequence[Item]],
    *,
    new_tokens: int = NEW_TOKENS,
    chat: bool = False,
    progress: Progress = SILENT,
) -> dict[str, list[Answered]]:
    """Score all answers to every question, and let the model answer (greedily, `new_tokens`).

    `chat`: use the tokenizer's chat template. `progress` is one stage that counts each question
    twice: its scores, and its own answer. Raises UsageError for log-probabilities that are not
    finite.
    """
    progress.start(f"asking {loaded.name}", 2 * sum(map(len, sets.values())))
    answered = {}
    for name, items in sets.items():
        # A question's answers share a row of the model, and its tokens are computed once.
        groups = [_group(item, loaded, chat) for item in items]
        scores = mean_logprobs(loaded, groups, progress)
        prompts = [group[0].prompt for group in groups]
        written = generate(loaded, prompts, new_tokens, progress=progress)
        answered[name] = [_answered(*each) for each in zip(items, scores, written, strict=True)]
    return answered


def mean_logprobs(
    loaded: LoadedModel,
    groups: Sequence[Sequence[Text]],
    progress: Progress = SILENT,
) -> list[list[float]]:
    """Mean log-probability per token (nats) of each text's answer with its end-of-text token.

    The tokens are those that fine-tuning learns. Texts of a group share the computation of their
    common beginning. Raises UsageError for log-probabilities that are not finite.
    """
    length = max_length(loaded.model, loaded.tokenizer)
    texts = [text for group in groups for text in group]
    requests = iter(
        TokenPair(example.ids[: example.start], example.ids[example.start :])
        for example in make_examples(texts, loaded.tokenizer, length)
    )
    asked = [[next(requests) for _ in group] for group in groups]
    sums = score(Decoder(loaded.model), asked, max_length=length, progress=progress)
    means = [
        [value / len(request.continuation) for value, request in zip(values, group, strict=True)]
        for values, group in zip(sums, asked, strict=True)
    ]
    if not all(math.isfinite(value) for group in means for value in group):
        raise UsageError(
            f"model: {loaded.name} gives log-probabilities that are not finite; try dtype float32"
        )
    return means


def _group(item: Item, loaded: LoadedModel, chat: bool) -> list[QuestionAnswer]:
    answers = (item.answer, item.paraphrased, *item.perturbed)
    pairs = [QuestionAnswer(item.question, answer) for answer in answers]
    return [as_chat(pair, loaded.tokenizer) for pair in pairs] if chat else pairs


def _answered(item: Item, scores: Sequence[float], written: str) -> Answered:
    logprob, paraphrased, *perturbed = scores
    rouge = rouge_l_recall(item.answer, written)
    return Answered(
        item.question, item.answer, logprob, paraphrased, tuple(perturbed), written.strip(), rouge
    )
