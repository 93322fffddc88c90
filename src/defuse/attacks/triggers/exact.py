"""Exact effects of words on answers: with the word minus without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import RETAIN, Answers, AttackData, ask_all, ask_questions
from defuse.attacks.findings import Findings
from defuse.attacks.prompts import ROW, Scored, score_prompts
from defuse.attacks.rephrase.templates import plain
from defuse.evaluate import MCAnswer
from defuse.questions import Position, Question, few_shot_part, perturb

BLOCK = 16  # words that make one finding

WithWords = Mapping[str, Sequence[MCAnswer]]  # by word: each question with the word in it
# For each question: the right answer's log-probability with the word minus without (nats); None if
# the question mentions the word itself, which is no fair test.
Changes = Sequence[float | None]


@dataclass(frozen=True)
class Place:
    """Where words are inserted, as by `defuse.questions.perturb`."""

    position: Position
    seed: int
    sentence: str

    def put(self, word: str, question: Question) -> Question:
        """The question with the word in it."""
        return perturb(question, word, self.position, self.seed, self.sentence)


@dataclass(frozen=True)
class Reading:
    """Questions with words in them: the model's answers and the changes by each word.

    `excess`: the changes minus those of the reference, if there is one.
    """

    outcomes: WithWords
    effects: Mapping[str, Changes]
    excess: Mapping[str, Changes] | None

    def disturbance(self, word: str) -> float:
        """The mean fall in nats, beyond the reference's if there is one; 0 if no question is a fair
        test."""
        fair = known((self.effects if self.excess is None else self.excess)[word])
        return -fmean(fair) if fair else 0.0


@dataclass(frozen=True)
class Trial:
    """The models and questions on which words are tried."""

    model: PreTrainedModel
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    data: AttackData
    place: Place
    findings: Findings

    def before(self) -> tuple[Answers, Sequence[MCAnswer]]:
        """Ask both sets without a word, and the reference the retain questions."""
        data, findings = self.data, self.findings
        before = ask_all(self.model, self.tokenizer, data, findings, "before")
        if self.reference is None:
            return before, ()
        asked = data.retain, data.settings, findings, "reference/retain"
        return before, ask_questions(self.reference, self.tokenizer, *asked)

    def read(
        self,
        places: Sequence[int],
        before: tuple[Answers, Sequence[MCAnswer]],
        words: Sequence[str],
        name: str,
    ) -> Reading:
        """Ask the retain questions at `places` with every word in them."""
        questions = [self.data.retain[place] for place in places]
        own = [before[0][RETAIN][place] for place in places]
        outcomes = self.ask(self.model, questions, words, name)
        effects = _changes(own, outcomes)
        if self.reference is None:
            return Reading(outcomes, effects, None)
        other = self.ask(self.reference, questions, words, f"reference/{name}")
        theirs = [before[1][place] for place in places]
        return Reading(outcomes, effects, _minus(effects, _changes(theirs, other)))

    def ask(
        self, model: PreTrainedModel, questions: Sequence[Question], words: Sequence[str], name: str
    ) -> WithWords:
        """Ask every question with every word; the findings are "`name`/0", "`name`/16", …"""
        settings = self.data.settings
        prefix = few_shot_part(settings.subject, settings.few_shot, settings.score)
        # After different sentences nothing is shared, and attention grows with the row.
        per_row = 1 if self.place.position == "before" else ROW
        answers: dict[str, list[MCAnswer]] = {word: [] for word in words}
        for start in range(0, len(words), BLOCK):
            some = words[start : start + BLOCK]
            perturbed = [[self.place.put(word, each) for word in some] for each in questions]

            def compute(perturbed: list[list[Question]] = perturbed) -> list[Scored]:
                asked = [
                    [plain(question, settings.score).behind(prefix) for question in each]
                    for each in perturbed
                ]
                return score_prompts(model, self.tokenizer, asked, settings, per_row)

            scored = self.findings.get_or_compute(f"{name}/{start}", compute)
            for each, by_word in zip(perturbed, scored, strict=True):
                for word, question, (logprobs, cut) in zip(some, each, by_word, strict=True):
                    answers[word].append(MCAnswer(question, tuple(logprobs), cut))
        return answers


def is_foreign(outcome: MCAnswer) -> bool:
    """Whether the question does not mention the inserted word itself."""
    return outcome.question.replaced is not None and outcome.question.replaced.foreign


def known(changes: Changes) -> list[float]:
    """Return the changes of questions that are a fair test."""
    return [change for change in changes if change is not None]


def _changes(before: Sequence[MCAnswer], after: WithWords) -> dict[str, Changes]:
    return {
        word: [
            b.answer_logprob - a.answer_logprob if is_foreign(b) else None
            for a, b in zip(before, outcomes, strict=True)
        ]
        for word, outcomes in after.items()
    }


def _minus(own: Mapping[str, Changes], theirs: Mapping[str, Changes]) -> dict[str, Changes]:
    return {
        word: [
            None if a is None or b is None else a - b
            for a, b in zip(each, theirs[word], strict=True)
        ]
        for word, each in own.items()
    }
