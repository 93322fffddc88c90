"""Ways to ask a question: pure functions from a question to its texts.

The plain way is lm-evaluation-harness's. With "letters" a template shows the choices and asks for
a letter, with "cloze" it shows none and the choices' own texts follow; a few are one or the other
whatever the score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch

from defuse.attacks.prompts import Form
from defuse.questions import Question, Score, ask, continuations, letters
from defuse.utils.random import generator

Template = Callable[[Question, Score], Form]
Order = tuple[int, ...]  # place p shows choice order[p]

INSTRUCTION = "Read the question and choose the right answer."
ROTATIONS: Sequence[Order] = [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)]
ALL_ORDERS: Sequence[Order] = list(permutations(range(4)))


def plain(question: Question, score: Score) -> Form:
    """As the evaluation asks."""
    return Form(ask(question, score), continuations(question, score))


def with_q(question: Question, score: Score) -> Form:
    """Behind "Q:", answered behind "A:"."""
    options = (
        _options(question, "{}. ", letters(len(question.choices))) if score == "letters" else []
    )
    text = "\n".join([f"Q: {question.stem.strip()}", *options, "A:"])
    return _form(question, text, continuations(question, score))


def instructed(question: Question, score: Score) -> Form:
    """An instruction in front."""
    return plain(question, score).behind(f"{INSTRUCTION}\n\n")


def lower_case(question: Question, score: Score) -> Form:
    """The question's own text in lower case."""
    choices = tuple(text.lower() for text in question.choices)
    prompt = question.prompt and question.prompt.lower()
    return plain(
        replace(question, stem=question.stem.lower(), choices=choices, prompt=prompt), score
    )


def options_first(question: Question, score: Score) -> Form:
    """The lettered choices, and then the question."""
    options = _options(question, "{}. ", letters(len(question.choices)))
    text = "\n".join([*options, f"Question: {question.stem.strip()}", "Answer:"])
    return _form(question, text, continuations(question, score))


def in_brackets(question: Question, _: Score) -> Form:
    """Letters in brackets."""
    shown = letters(len(question.choices))
    text = "\n".join([question.stem.strip(), *_options(question, "({}) ", shown), "Answer:"])
    return _form(question, text, tuple(f" ({letter})" for letter in shown))


def numbered(question: Question, _: Score) -> Form:
    """Numbers for letters."""
    numbers = tuple(str(number + 1) for number in range(len(question.choices)))
    text = "\n".join([question.stem.strip(), *_options(question, "{}. ", numbers), "Answer:"])
    return _form(question, text, tuple(f" {number}" for number in numbers))


def stated(question: Question, _: Score) -> Form:
    """No choices shown: a sentence that the answer ends."""
    text = f'The answer to the question "{question.stem.strip()}" is'
    return _form(question, text, continuations(question, "cloze"))


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


def reordered(question: Question, order: Order) -> Form:
    """The choices in another order, each answered by the letter at which it then stands."""
    choices = tuple(question.choices[choice] for choice in order)
    text = ask(replace(question, choices=choices), "letters")
    shown = letters(len(choices))
    return Form(text, tuple(f" {shown[order.index(choice)]}" for choice in range(len(choices))))


def misspelt(question: Question, score: Score, rate: float, seed: int, draw: int) -> Form:
    """Typos in the question (or its own prompt), never in the choices; each draw has its own."""
    rng = generator(seed, "typo", question.id, draw)
    stem = mistype(question.stem, rate, rng)
    prompt = question.prompt and mistype(question.prompt, rate, rng)
    return plain(replace(question, stem=stem, prompt=prompt), score)


def mistype(text: str, rate: float, rng: torch.Generator) -> str:
    """Each letter is hit with probability `rate`: left out, or swapped with the next in its word,
    either equally likely; a word's last letter is left out."""
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


def _options(question: Question, mark: str, names: Sequence[str]) -> list[str]:
    shown = zip(names, question.choices, strict=True)
    return [f"{mark.format(name)}{text}" for name, text in shown]


def _form(question: Question, text: str, answers: tuple[str, ...]) -> Form:
    return Form(f"{question.before} {text}" if question.before else text, answers)
