"""Templates: pure functions from a question to a prompt.

The plain one is lm-evaluation-harness's. With "letters" a template shows the choices and asks for a
letter; with "cloze" it shows none, and the choices' own texts follow. A few are one or the other
whatever the score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch

from defuse.attacks.prompts import Prompt
from defuse.questions import Question, Score, ask, continuations, letters
from defuse.utils.random import generator

Template = Callable[[Question, Score], Prompt]
Order = tuple[int, ...]  # place p shows choice order[p]

INSTRUCTION = "Read the question and choose the right answer."


def plain(question: Question, score: Score) -> Prompt:
    """The evaluation's own prompt."""
    return Prompt(ask(question, score), continuations(question, score))


def with_q(question: Question, score: Score) -> Prompt:
    """The question after "Q:", the answer after "A:"."""
    options = _options(question, "{}. ") if score == "letters" else []
    text = "\n".join([f"Q: {question.stem.strip()}", *options, "A:"])
    return _prompt(question, text, continuations(question, score))


def instructed(question: Question, score: Score) -> Prompt:
    """An instruction in front."""
    return plain(question, score).behind(f"{INSTRUCTION}\n\n")


def lower_case(question: Question, score: Score) -> Prompt:
    """The question's own text in lower case."""
    choices = tuple(text.lower() for text in question.choices)
    prompt = question.prompt and question.prompt.lower()
    return plain(
        replace(question, stem=question.stem.lower(), choices=choices, prompt=prompt), score
    )


def options_first(question: Question, score: Score) -> Prompt:
    """The lettered choices, and then the question."""
    options = _options(question, "{}. ")
    text = "\n".join([*options, f"Question: {question.stem.strip()}", "Answer:"])
    return _prompt(question, text, continuations(question, score))


def in_brackets(question: Question, _: Score) -> Prompt:
    """Letters in brackets."""
    text = "\n".join([question.stem.strip(), *_options(question, "({}) "), "Answer:"])
    return _prompt(
        question, text, tuple(f" ({letter})" for letter in letters(len(question.choices)))
    )


def numbered(question: Question, _: Score) -> Prompt:
    """Numbers instead of letters."""
    numbers = [str(number) for number in range(1, 1 + len(question.choices))]
    text = "\n".join([question.stem.strip(), *_options(question, "{}. ", numbers), "Answer:"])
    return _prompt(question, text, tuple(f" {number}" for number in numbers))


def stated(question: Question, _: Score) -> Prompt:
    """No choices: a sentence that the answer completes."""
    text = f'The answer to the question "{question.stem.strip()}" is'
    return _prompt(question, text, continuations(question, "cloze"))


TEMPLATES: Mapping[str, Template] = {
    "letters": lambda question, _: plain(question, "letters"),
    "cloze": lambda question, _: plain(question, "cloze"),
    "statement": stated,
    "q-and-a": with_q,
    "instruction": instructed,
    "lower-case": lower_case,
    "options-first": options_first,
    "brackets": in_brackets,
    "numbers": numbered,
}


def rotations(count: int) -> Sequence[Order]:
    """The rotations of `count` choices: each choice is once in each place."""
    places = range(count)
    return [(*places[start:], *places[:start]) for start in places]


def all_orders(count: int) -> Sequence[Order]:
    """All orders of `count` choices."""
    return list(permutations(range(count)))


def reordered(question: Question, order: Order) -> Prompt:
    """The choices in another order, each answered by the letter that it then has."""
    choices = tuple(question.choices[choice] for choice in order)
    text = ask(replace(question, choices=choices), "letters")
    shown = continuations(question, "letters")
    return Prompt(text, tuple(shown[order.index(choice)] for choice in range(len(order))))


def misspelt(question: Question, score: Score, rate: float, seed: int, draw: int) -> Prompt:
    """Typos in the question (or its own prompt), never in the choices; each draw has its own."""
    rng = generator(seed, "typo", question.id, draw)
    stem = mistype(question.stem, rate, rng)
    prompt = question.prompt and mistype(question.prompt, rate, rng)
    return plain(replace(question, stem=stem, prompt=prompt), score)


def mistype(text: str, rate: float, rng: torch.Generator) -> str:
    """Each letter is changed with probability `rate`: left out, or swapped with the next one of its
    word, with equal chances; the last letter of a word is left out."""
    chances = torch.rand(len(text), generator=rng).tolist()
    written, place = "", 0
    while place < len(text):
        hit = text[place].isalpha() and chances[place] < rate
        swaps = hit and chances[place] < rate / 2 and text[place + 1 : place + 2].isalpha()
        if swaps:
            written += text[place + 1] + text[place]
        elif not hit:
            written += text[place]
        place += 2 if swaps else 1
    return written


def _options(question: Question, mark: str, names: Sequence[str] | None = None) -> list[str]:
    shown = zip(names or letters(len(question.choices)), question.choices, strict=True)
    return [f"{mark.format(name)}{text}" for name, text in shown]


def _prompt(question: Question, text: str, answers: tuple[str, ...]) -> Prompt:
    return Prompt(f"{question.before} {text}" if question.before else text, answers)
