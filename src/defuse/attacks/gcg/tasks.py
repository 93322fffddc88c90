"""Searches of a GCG attack, prepared with the tokenizer alone, before the model is run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import AttackData
from defuse.attacks.gcg.candidates import Spelling, allowed_tokens, random_suffix
from defuse.attacks.gcg.config import AIMED, GCG, Aim
from defuse.attacks.gcg.places import Place, answer_tokens, question_place
from defuse.attacks.gcg.score import AnswerTarget, LetterTarget, Problem, Target
from defuse.attacks.gcg.search import first_suffix
from defuse.data.sampling import spread
from defuse.evaluate.loglikelihood import max_length
from defuse.models.decoder import Decoder
from defuse.questions import Question
from defuse.utils.errors import UsageError
from defuse.utils.random import generator

CONTROLS = 10  # random suffixes, which questions are asked with in turn
PROBES = 64
FEWEST = 2  # tokens, so that one can replace another


@dataclass(frozen=True)
class SearchTask:
    """A search on the questions number `rows` of the set `questions`."""

    name: str
    aim: Aim
    questions: str
    rows: tuple[int, ...]
    problems: tuple[Problem, ...]
    spelling: Spelling
    start: tuple[int, ...]


@dataclass(frozen=True)
class Searches:
    """All searches of an attack, the texts of its random suffixes, and the tokens (A,) of both."""

    universal: Sequence[SearchTask]
    each_question: Sequence[Sequence[SearchTask]]
    controls: Sequence[str]
    allowed: Tensor

    @property
    def count(self) -> int:
        """The number of searches, at most."""
        return len(self.universal) + sum(map(len, self.each_question))


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: AttackData, config: GCG
) -> Searches:
    """Prepare all searches.

    Raises UsageError for letters of several tokens, for places that no suffix fits, for a tokenizer
    with too few tokens for a suffix, and for prompts that do not fit the model.
    """
    builder = _Builder(model, tokenizer, data, config)
    universal = [builder.universal(aim) for aim in config.aims if "universal" in config.modes]
    own = [builder.each_question(aim) for aim in config.aims if "question" in config.modes]
    return Searches(universal, own, builder.random_suffixes(), builder.allowed)


class _Builder:
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: AttackData,
        config: GCG,
    ) -> None:
        self.tokenizer, self.data, self.config = tokenizer, data, config
        self.max_length = max_length(model, tokenizer)
        self.allowed: Tensor = allowed_tokens(tokenizer, Decoder(model), config.allow_non_ascii)
        if len(self.allowed) < FEWEST:
            raise UsageError(
                f"tokenizer: {len(self.allowed)} of its tokens may be part of a suffix, too few to "
                "search among; set gcg.allow_non_ascii to true"
            )
        rng = generator(config.seed, "gcg", "probes")
        draws = torch.randint(len(self.allowed), (PROBES,), generator=rng)
        self.probes: list[int] = self.allowed[draws].tolist()

    def universal(self, aim: Aim) -> SearchTask:
        """A search on a random part of a question set."""
        each, config = AIMED[aim], self.config
        count = len(self.data.sets[each])
        if count < 2:
            raise UsageError(
                f"{each}: has one question, and a universal suffix is searched on some and tried "
                "on others; give more, or set gcg.modes to 'question'"
            )
        rng = generator(config.seed, "gcg", "searched", each)
        share = min(config.questions or count, round(config.train_share * count), count - 1)
        rows = torch.randperm(count, generator=rng)[: max(1, share)].tolist()
        return self._task(f"{aim}, universal", aim, sorted(rows))

    def each_question(self, aim: Aim) -> list[SearchTask]:
        """A search for each of some questions, evenly spread over a set."""
        questions = self.data.sets[AIMED[aim]]
        rows = spread(range(len(questions)), self.config.questions or None)
        return [
            self._task(f"{aim}, question {row} {questions[row].id}", aim, [row]) for row in rows
        ]

    def random_suffixes(self) -> list[str]:
        """The texts of random suffixes, as long as those that are searched for."""
        first = [questions[0] for questions in self.data.sets.values()]
        spelling = Spelling(self.tokenizer, [self._place(each) for each in first], self.probes)
        rngs = [generator(self.config.seed, "gcg", "control", k) for k in range(CONTROLS)]
        length = self.config.length
        return spelling.texts([random_suffix(spelling, self.allowed, length, rng) for rng in rngs])

    def _task(self, name: str, aim: Aim, rows: Sequence[int]) -> SearchTask:
        questions = [self.data.sets[AIMED[aim]][row] for row in rows]
        places = [self._place(question) for question in questions]
        spelling = Spelling(self.tokenizer, places, self.probes)
        problems = tuple(
            self._problem(question, place, aim)
            for question, place in zip(questions, places, strict=True)
        )
        start = first_suffix(self.config, spelling, self.allowed, name)
        return SearchTask(name, aim, AIMED[aim], tuple(rows), problems, spelling, start)

    def _place(self, question: Question) -> Place:
        settings, where = self.data.settings, self.config.place
        return question_place(question, settings, where, self.tokenizer, self.probes)

    def _problem(self, question: Question, place: Place, aim: Aim) -> Problem:
        target = self._target(question, aim)
        # As in an evaluation, which cuts long prompts on the left.
        behind = self.config.length + len(place.after) + len(target.read)
        cut = len(place.before) + behind - self.max_length
        if cut >= len(place.before):
            raise UsageError(
                f"gcg.length: question {question.id!r} with a suffix of {self.config.length} "
                f"tokens is longer than the {self.max_length} that the model reads; shorten either"
            )
        return Problem(place.before[max(0, cut) :], place.after, target)

    def _target(self, question: Question, aim: Aim) -> Target:
        settings = self.data.settings
        answers = answer_tokens(question, settings, self.tokenizer)
        if settings.score == "letters":
            return LetterTarget(tuple(token for (token,) in answers), question.answer, aim)
        return AnswerTarget(answers[question.answer], aim)
