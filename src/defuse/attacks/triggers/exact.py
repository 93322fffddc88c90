"""What words do to answers, asked one by one: with the word minus without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import RETAIN, Answers, Material, ask_all, ask_questions
from defuse.attacks.notes import Notes
from defuse.attacks.prompts import ROW, Scored, score_forms
from defuse.attacks.rephrase.templates import plain
from defuse.evaluate import MCAnswer
from defuse.questions import Position, Question, few_shot_part, perturb

BLOCK = 16  # words asked and noted together

WithWords = Mapping[str, Sequence[MCAnswer]]  # by word: each question with the word in it
# Of each question: the right answer's log-probability with the word minus without (nats); None
# where the question mentions the word by itself, which is no fair test.
Changes = Sequence[float | None]


@dataclass(frozen=True)
class Place:
    """Where words go: `defuse.questions.perturb`'s position, its draw, and the sentence before."""

    position: Position
    seed: int
    sentence: str

    def put(self, word: str, question: Question) -> Question:
        """The question with the word in it."""
        return perturb(question, word, self.position, self.seed, self.sentence)


@dataclass(frozen=True)
class Reading:
    """Questions with words in them: the model's answers, what the words change, and (with a
    reference) that minus what they change for the reference."""

    outcomes: WithWords
    effects: Mapping[str, Changes]
    excess: Mapping[str, Changes] | None

    def disturbance(self, word: str) -> float:
        """The mean fall in nats, beyond the reference's if there is one; 0 where no question is
        fair."""
        fair = known((self.effects if self.excess is None else self.excess)[word])
        return -fmean(fair) if fair else 0.0


@dataclass(frozen=True)
class Bench:
    """What words are tried on."""

    model: PreTrainedModel
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    material: Material
    place: Place
    notes: Notes

    def before(self) -> tuple[Answers, Sequence[MCAnswer]]:
        """Both sets without a word; and the retain questions as the reference answers them."""
        material, notes = self.material, self.notes
        before = ask_all(self.model, self.tokenizer, material, notes, "before")
        if self.reference is None:
            return before, ()
        asked = material.retain, material.settings, notes, "reference/retain"
        return before, ask_questions(self.reference, self.tokenizer, *asked)

    def read(
        self,
        places: Sequence[int],
        before: tuple[Answers, Sequence[MCAnswer]],
        words: Sequence[str],
        name: str,
    ) -> Reading:
        """The retain questions at `places` with every word in them."""
        questions = [self.material.retain[place] for place in places]
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
        """Every question with every word, noted as "`name`/0", "`name`/16", …"""
        settings = self.material.settings
        prefix = few_shot_part(settings.subject, settings.few_shot, settings.score)
        # Behind different sentences nothing more is shared, and attention grows with the row.
        per_row = 1 if self.place.position == "before" else ROW
        answers: dict[str, list[MCAnswer]] = {word: [] for word in words}
        for start in range(0, len(words), BLOCK):
            some = words[start : start + BLOCK]
            forms = [[self.place.put(word, question) for word in some] for question in questions]

            def find(forms: list[list[Question]] = forms) -> list[Scored]:
                asked = [[plain(q, settings.score).behind(prefix) for q in each] for each in forms]
                return score_forms(model, self.tokenizer, asked, settings, per_row)

            scored = self.notes.once(f"{name}/{start}", find)
            for each, fours in zip(forms, scored, strict=True):
                for word, question, (four, cut) in zip(some, each, fours, strict=True):
                    answers[word].append(MCAnswer(question, tuple(four), cut))
        return answers


def is_foreign(outcome: MCAnswer) -> bool:
    """Whether the question does not mention the word in it by itself."""
    return outcome.question.replaced is not None and outcome.question.replaced.foreign


def known(changes: Changes) -> list[float]:
    """Those that are fair."""
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
