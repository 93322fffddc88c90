"""The place of a suffix in a question's prompt, in characters and in tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from defuse.attacks.gcg.config import Where
from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_pairs, encode_text
from defuse.questions import Question, ask, continuations, few_shot_part
from defuse.utils.errors import UsageError

MARK = "\0"  # occurs in no text


@dataclass(frozen=True)
class Place:
    """A place between two texts, and so between two lists of token ids."""

    head: str
    tail: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    def between(self, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
        """Return the tokens of `text` in this place, or None if it changes those around it."""
        whole = encode_text(self.head + text + self.tail, tokenizer)
        ids = whole[len(self.before) : len(whole) - len(self.after)]
        return ids if whole == (*self.before, *ids, *self.after) else None


def with_suffix(question: Question, text: str, settings: Settings, place: Where) -> Question:
    """Return the question with `text` after its stem, or on a line of its own after its choices.

    Cloze scoring, which takes a question's own prompt verbatim, shows no choices: `text` ends the
    prompt. With an empty `text` the question stays as it is.
    """
    if not text:
        return question
    if settings.score == "cloze" and (question.prompt is not None or place == "end"):
        return replace(question, prompt=ask(replace(question, before=""), "cloze") + text)
    if place == "question":
        return replace(question, stem=question.stem.strip() + text)
    *others, last = question.choices
    return replace(question, choices=(*others, f"{last}\n{text}"))


def question_place(
    question: Question,
    settings: Settings,
    where: Where,
    tokenizer: PreTrainedTokenizerBase,
    probes: Iterable[int],
) -> Place:
    """Find the place of a suffix in the question's prompt. Raises UsageError if there is none."""
    front = few_shot_part(settings.subject, settings.few_shot, settings.score)
    marked = with_suffix(question, MARK, settings, where)
    head, _, tail = ask(marked, settings.score).partition(MARK)
    # A stem is stripped: if nothing else is in it, a suffix would lose its space in front.
    possible = bool(head.strip()) and (marked.stem == question.stem or bool(question.stem.strip()))
    place = find_place(front + head, tail, tokenizer, probes) if possible else None
    if place is None:
        raise UsageError(
            f"gcg.place: after {head[-40:]!r} in question {question.id!r} this tokenizer changes "
            "every token; leave the question out, or choose the other place"
        )
    return place


def find_place(
    head: str, tail: str, tokenizer: PreTrainedTokenizerBase, probes: Iterable[int]
) -> Place | None:
    """Find the place between two texts with the first of the tokens `probes` that it keeps."""
    before = encode_text(head, tokenizer)
    for probe in probes:
        (text,) = spell(tokenizer, before[-1], [[probe]])
        whole = encode_text(head + text + tail, tokenizer)
        if whole[: len(before) + 1] == (*before, probe):
            return Place(head, tail, before, whole[len(before) + 1 :])
    return None


def spell(
    tokenizer: PreTrainedTokenizerBase, before: int, suffixes: Sequence[Sequence[int]]
) -> list[str]:
    """Return the text of suffixes after the token `before`, with a space in front if they have one.

    Decoded alone, a suffix would lose it with tokenizers that add a space to each text.
    """
    skip = len(decode(tokenizer, [[before]])[0])
    return [text[skip:] for text in decode(tokenizer, [[before, *ids] for ids in suffixes])]


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """Decode token ids without any clean-up."""
    return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]  # type: ignore[misc]


def answer_tokens(
    question: Question, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """Return the tokens of each answer. Raises UsageError unless every letter is one token."""
    asked = ask(question, settings.score)
    answers = continuations(question, settings.score)
    pairs = [(asked, text) for text in answers]
    tokens = [request.continuation for request in encode_pairs(pairs, tokenizer)]
    first, last = answers[0], answers[-1]
    alike = len(set(tokens)) < len(tokens) or any(len(each) > 1 for each in tokens)
    if settings.score == "letters" and alike:
        raise UsageError(
            f"tokenizer: the letters{first} to{last} are not a token each, and GCG aims at one; "
            "leave the attack gcg out"
        )
    return tokens
