"""Where a suffix stands in a question's prompt, in characters and in tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from defuse.attacks.gcg.config import Where
from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_pairs, encode_text
from defuse.questions import Question, ask, continuations, few_shot_part
from defuse.utils.errors import UsageError

MARK = "\0"  # no text has it


@dataclass(frozen=True)
class Place:
    """Between two texts, that is between two lists of token ids."""

    head: str
    tail: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    def between(self, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
        """The tokens of `text` where it stands; None where it changes those around it."""
        whole = encode_text(self.head + text + self.tail, tokenizer)
        ids = whole[len(self.before) : len(whole) - len(self.after)]
        return ids if whole == (*self.before, *ids, *self.after) else None


def with_suffix(question: Question, text: str, settings: Settings, place: Where) -> Question:
    """The question with `text` behind its stem, or on a line of its own behind its choices.

    Cloze scoring, which asks a question's own prompt verbatim, shows no choices: `text` ends the
    prompt. Without any `text` the question stays as it is.
    """
    if not text:
        return question
    if settings.score == "cloze" and (question.prompt is not None or place == "end"):
        return replace(question, prompt=ask(replace(question, before=""), "cloze") + text)
    if place == "question":
        return replace(question, stem=question.stem.strip() + text)
    *others, last = question.choices
    first, second, third = others
    return replace(question, choices=(first, second, third, f"{last}\n{text}"))


def question_place(
    question: Question,
    settings: Settings,
    where: Where,
    tokenizer: PreTrainedTokenizerBase,
    probes: Iterable[int],
) -> Place:
    """Where a suffix stands in the question's prompt. Raises UsageError where none can."""
    front = few_shot_part(settings.subject, settings.few_shot, settings.score)
    marked = with_suffix(question, MARK, settings, where)
    head, _, tail = ask(marked, settings.score).partition(MARK)
    # A stem is stripped: where nothing else is in it, a suffix would lose its space in front.
    stands = bool(head.strip()) and (marked.stem == question.stem or bool(question.stem.strip()))
    place = find_place(front + head, tail, tokenizer, probes) if stands else None
    if place is None:
        raise UsageError(
            f"gcg: behind {head[-40:]!r} in question {question.id!r} this tokenizer keeps no token "
            "as it is; leave the question out, or set gcg.place to the other"
        )
    return place


def find_place(
    head: str, tail: str, tokenizer: PreTrainedTokenizerBase, probes: Iterable[int]
) -> Place | None:
    """The place between the texts, learnt from the first of the tokens `probes` that it holds."""
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
    """The suffixes as they read behind the token `before`, with a space in front if they have one.

    Alone a suffix would lose it with tokenizers whose texts begin with a space of their own.
    """
    skip = len(decode(tokenizer, [[before]])[0])
    return [text[skip:] for text in decode(tokenizer, [[before, *ids] for ids in suffixes])]


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """Token ids as text, nothing tidied."""
    return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]  # type: ignore[misc]


def answer_tokens(
    question: Question, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """The four answers' tokens. Raises UsageError where letters are not a token each."""
    asked = ask(question, settings.score)
    pairs = [(asked, text) for text in continuations(question, settings.score)]
    tokens = [request.continuation for request in encode_pairs(pairs, tokenizer)]
    alike = len(set(tokens)) < len(tokens) or any(len(each) > 1 for each in tokens)
    if settings.score == "letters" and alike:
        raise UsageError(
            "gcg: with this tokenizer the letters A to D are not a token each; attack another way"
        )
    return tokens
