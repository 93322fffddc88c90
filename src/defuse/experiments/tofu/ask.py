"""Ask a model TOFU's questions: log-probabilities of all answers, and what it writes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from defuse.data.text import QuestionAnswer, Text, as_chat
from defuse.evaluate.generation import generate
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.token_tree import TokenPair
from defuse.experiments.tofu.data import Item
from defuse.experiments.tofu.metrics import rouge_l_recall
from defuse.experiments.tofu.names import Named
from defuse.finetune import make_examples
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT, Progress

NEW_TOKENS = 128  # longer than any of TOFU's answers

OnAsked = Callable[[str, int], None]


@dataclass(frozen=True)
class Answered:
    """How a model met one question.

    `logprob`, `paraphrased`, `perturbed`: mean log-probability per token (nats) of the answer, of
    it put otherwise and of the wrong ones, each with its end-of-text token. `written`: what the
    model answers itself, and `rouge` its ROUGE-L recall of the answer.
    """

    question: str
    answer: str
    logprob: float
    paraphrased: float
    perturbed: tuple[float, ...]
    written: str
    rouge: float


@dataclass(frozen=True)
class BehindName:
    """The answer's mean log-probability (nats) behind a forgotten and behind a kept name."""

    question: str
    forget: float
    control: float


@dataclass(frozen=True)
class _Told:
    """Progress that a function receives."""

    asked: Callable[[int], None]

    def start(self, name: str, total: int) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        self.asked(count)


def ask(
    loaded: LoadedModel,
    sets: Mapping[str, Sequence[Item]],
    *,
    new_tokens: int = NEW_TOKENS,
    chat: bool = False,
    on_asked: OnAsked = lambda _, __: None,
) -> dict[str, list[Answered]]:
    """Every question of every set, scored and answered freely (greedily, up to `new_tokens`).

    One row of the model holds a question with all its answers, the question's tokens once. `chat`
    asks by the tokenizer's template. `on_asked` hears of sets and questions as they are done, once
    for scores and once for what is written. Raises UsageError for figures that are not finite.
    """
    answered = {}
    for name, items in sets.items():
        told = _Told(partial(on_asked, name))
        groups = [_group(item, loaded, chat) for item in items]
        scores = mean_logprobs(loaded, groups, told)
        prompts = [group[0].prompt for group in groups]
        written = generate(loaded, prompts, new_tokens, progress=told)
        answered[name] = [_answered(*each) for each in zip(items, scores, written, strict=True)]
    return answered


def ask_behind_names(
    loaded: LoadedModel, questions: Sequence[Named], items: Sequence[Item]
) -> list[BehindName]:
    """The answers' log-probabilities behind both names; `items` are the questions without them."""
    groups = [[each.forget, each.control] for each in questions]
    scores = mean_logprobs(loaded, groups)
    return [
        BehindName(item.question, forget, control)
        for item, (forget, control) in zip(items, scores, strict=True)
    ]


def mean_logprobs(
    loaded: LoadedModel,
    groups: Sequence[Sequence[Text]],
    progress: Progress = SILENT,
) -> list[list[float]]:
    """Mean log-probability per token (nats) of each text's answer and end, as fine-tuning counts.

    Texts of a group that begin alike share what they begin with. Raises UsageError for figures
    that are not finite.
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
