"""What an experiment asks a model: prompts that are scored together, encoded once."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_questions
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.token_tree import TokenPair
from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET_SET,
    FORGET_TOKEN,
    Answer,
    AnswerTable,
    Cell,
)
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.questions import Perturbation, Question, ask
from defuse.utils.progress import SILENT, Progress

QuestionSets = Mapping[str, Sequence[Question]]  # "forget", then retain sets, by name
Prompt = tuple[Cell, Question]


@dataclass(frozen=True)
class Probe:
    """Prompts scored in one pass. Prompts of a group begin alike and share one row."""

    groups: tuple[tuple[Prompt, ...], ...]
    settings: Settings

    @property
    def count(self) -> int:
        """The number of prompts."""
        return sum(map(len, self.groups))

    @cached_property
    def digest(self) -> str:
        """Equal for equal prompts, asked alike."""
        return hashlib.sha256(repr((self.groups, self.settings)).encode()).hexdigest()

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> list[list[TokenPair]]:
        """Token ids of every group's prompts, each with all of its continuations."""
        questions = [question for group in self.groups for _, question in group]
        asked = iter(encode_questions(questions, self.settings, tokenizer))
        return [[pair for _ in group for pair in next(asked)] for group in self.groups]


@dataclass(frozen=True)
class MCQuestions:
    """The prompts of a run's last step, and those of the checkpoints before it.

    `keep_text`: answers keep prompts and choices.
    """

    final: tuple[Probe, ...]
    interim: tuple[Probe, ...]
    keep_text: bool = True

    def probes(self, *, final: bool) -> tuple[Probe, ...]:
        """The prompts of the last step, or of a checkpoint before it."""
        return self.final if final else self.interim

    def digest(self, *, final: bool) -> str:
        """Equal for equal prompts."""
        digests = [probe.digest for probe in self.probes(final=final)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


class Examiner:
    """Asks models of one vocabulary; each list of prompts is encoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._encoded: dict[str, list[list[TokenPair]]] = {}

    def ask(
        self,
        loaded: LoadedModel,
        probes: Sequence[Probe],
        *,
        keep_text: bool,
        progress: Progress = SILENT,
    ) -> AnswerTable:
        """The model's answers. A prompt that two probes ask keeps the later probe's answer."""
        table: dict[Cell, dict[str, Answer]] = {}
        for probe in probes:
            if probe.digest not in self._encoded:
                self._encoded[probe.digest] = probe.encode(self._tokenizer)
            requests = self._encoded[probe.digest]
            length = max_length(loaded.model, loaded.tokenizer)
            budget = probe.settings.token_budget
            scores = score(
                Decoder(loaded.model),
                requests,
                max_length=length,
                token_budget=budget,
                progress=progress,
            )
            for group, values in zip(probe.groups, scores, strict=True):
                rest = iter(values)
                for cell, question in group:
                    logprobs = [next(rest) for _ in question.choices]
                    asked = _asked(question, probe.settings) if keep_text else None
                    table.setdefault(cell, {})[question.id] = _answer(question, logprobs, asked)
        return table


def _asked(question: Question, settings: Settings) -> dict[str, Any]:
    return {
        "prompt": ask(question, settings.score),
        "choices": list(question.choices),
        "answer": question.answer,
    }


def _answer(question: Question, values: Sequence[float], asked: Mapping[str, Any] | None) -> Answer:
    """`values`: summed log-probabilities of the choices (nats)."""
    top = max(values)
    total = top + math.log(math.fsum(math.exp(value - top) for value in values))
    logprobs = tuple(round(value - total, 6) for value in values)
    is_correct = max(range(len(values)), key=values.__getitem__) == question.answer
    return Answer(is_correct, logprobs[question.answer], logprobs, asked)


def make_probes(
    sets: QuestionSets,
    settings: Mapping[str, Settings],
    perturbations: Sequence[Perturbation] = (),
    limit: int | None = None,
) -> tuple[Probe, ...]:
    """The first `limit` questions of each set; retain sets also with each perturbation.

    A question and its perturbed variants share a row. `settings`: by set; sets that are asked alike
    go together.
    """
    some = {name: questions[:limit] for name, questions in sets.items()}
    forget = tuple(((Cell(FORGET_SET), question),) for question in some[FORGET_SET])
    probes = [Probe(forget, settings[FORGET_SET])]
    retain = [name for name in some if name != FORGET_SET]
    for alike in dict.fromkeys(settings[name] for name in retain):
        names = [name for name in retain if settings[name] == alike]
        for perturbation in perturbations or (None,):
            groups = [
                _variants(name, question, perturbation, alike.seed)
                for name in names
                for question in some[name]
            ]
            probes.append(Probe(tuple(groups), alike))
    return tuple(probes)


def _variants(
    name: str, question: Question, perturbation: Perturbation | None, seed: int
) -> tuple[Prompt, ...]:
    prompts = [(Cell(name), question)]
    if perturbation is not None:
        perturbed = perturbation.variants(question, seed)
        pairs = zip((FORGET_TOKEN, CONTROL_TOKEN), perturbed.values(), strict=False)
        prompts += [(Cell(name, variant, perturbation.position), each) for variant, each in pairs]
    return tuple(prompts)
