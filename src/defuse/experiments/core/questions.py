"""What an experiment asks a model: prompts that are scored together, encoded once."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from defuse.evaluate import MCAnswer, Settings
from defuse.evaluate.answers import read_row
from defuse.evaluate.encoding import encode_rows, prompt_pairs
from defuse.evaluate.evaluate import variants_of
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.token_tree import TokenPair
from defuse.experiments.core.answers import (
    FORGET_SET,
    ORIGINAL,
    Answer,
    AnswerTable,
    Cell,
    QuestionKey,
    Slice,
    slice_of,
)
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.questions import Perturbation, Question, ask
from defuse.utils.identity import digest
from defuse.utils.progress import SILENT, Progress

QuestionSets = Mapping[str, Sequence[Question]]  # "forget", then retain sets, by name
Prompt = tuple[Cell, Question]
# When a run is asked: after its last step, after three quarters of its steps, or before.
Stage = Literal["final", "late", "interim"]


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
        return digest((self.groups, self.settings))

    @property
    def prompts(self) -> Iterator[Prompt]:
        """The prompts of all groups."""
        return chain.from_iterable(self.groups)

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> list[list[TokenPair]]:
        """Token ids of every group's prompts, each with all of its continuations."""
        rows = [prompt_pairs([each for _, each in group], self.settings) for group in self.groups]
        return encode_rows(rows, tokenizer)


@dataclass(frozen=True)
class MCQuestions:
    """The prompts of a run's last step, and of the checkpoints before it.

    `late`: of those in the last quarter; None is those of `interim`. `keep_text`: answers keep
    prompts and choices.
    """

    final: tuple[Probe, ...]
    interim: tuple[Probe, ...]
    keep_text: bool = True
    late: tuple[Probe, ...] | None = None

    def probes(self, stage: Stage) -> tuple[Probe, ...]:
        """The prompts of a checkpoint."""
        if stage == "final":
            return self.final
        return self.interim if stage == "interim" or self.late is None else self.late

    @property
    def prompts(self) -> Iterator[Prompt]:
        """The prompts of the last step; one that several probes ask comes again."""
        return chain.from_iterable(probe.prompts for probe in self.final)

    def asked(self, part: Slice) -> dict[QuestionKey, Question]:
        """The last step's questions of a slice, as they are asked."""
        return {
            (cell.question_set, question.id): question
            for cell, question in self.prompts
            if slice_of(cell) == part
        }

    def digest(self, stage: Stage) -> str:
        """Equal for equal prompts."""
        digests = [probe.digest for probe in self.probes(stage)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def ask_model(
    loaded: LoadedModel,
    probes: Sequence[Probe],
    *,
    keep_text: bool,
    encoded: dict[str, list[list[TokenPair]]] | None = None,
    progress: Progress = SILENT,
) -> AnswerTable:
    """The model's answers. A prompt that two probes ask keeps the later probe's answer.

    `encoded`: token ids of probes by their digest, for models of one vocabulary; those that are
    missing are added.
    """
    encoded = {} if encoded is None else encoded
    table: dict[Cell, dict[str, Answer]] = {}
    length = max_length(loaded.model, loaded.tokenizer)
    for probe in probes:
        if probe.digest not in encoded:
            encoded[probe.digest] = probe.encode(loaded.tokenizer)
        rows = encoded[probe.digest]
        how = {"max_length": length, "token_budget": probe.settings.token_budget}
        scores = score(Decoder(loaded.model), rows, **how, progress=progress)
        for group, row, values in zip(probe.groups, rows, scores, strict=True):
            cut = [pair.is_cut(length) for pair in row]
            answers = read_row((question for _, question in group), values, cut)
            for (cell, question), answer in zip(group, answers, strict=True):
                asked = _asked(question, probe.settings) if keep_text else None
                table.setdefault(cell, {})[question.id] = _kept(answer, asked)
    return table


def _asked(question: Question, settings: Settings) -> dict[str, Any]:
    return {
        "prompt": ask(question, settings.score),
        "choices": list(question.choices),
        "answer": question.answer,
    }


def _kept(answer: MCAnswer, asked: Mapping[str, Any] | None) -> Answer:
    logprobs = tuple(round(value, 6) for value in answer.among_choices)
    return Answer(answer.is_correct, logprobs[answer.question.answer], logprobs, asked)


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
    place = None if perturbation is None else perturbation.position
    asked = variants_of(question, perturbation, seed).items()
    return tuple((Cell(name, v, None if v == ORIGINAL else place), each) for v, each in asked)
