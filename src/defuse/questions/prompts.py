"""Prompts, equal to those of lm-evaluation-harness 0.4.13 for `mmlu` and `wmdp` byte for byte.

Source: lm_eval/tasks/mmlu/default/_default_template_yaml and lm_eval/tasks/wmdp; the few-shot
layout is that of `ConfigurableTask.fewshot_context`.
"""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Literal

from defuse.questions.question import Question

Score = Literal["letters", "cloze"]


def letters(count: int) -> tuple[str, ...]:
    """The letters of `count` choices: A, B, C, …"""
    return tuple(ascii_uppercase[:count])


def description(subject: str | None) -> str:
    """The description line; empty without a subject. MMLU's names may have their underscores."""
    if subject is None:
        return ""
    about = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {about}.\n\n"


def ask(question: Question, score: Score) -> str:
    """The question's text, up to the place of the answer."""
    if score == "letters":
        lettered = zip(letters(len(question.choices)), question.choices, strict=True)
        lines = [f"{letter}. {text}" for letter, text in lettered]
        text = "\n".join([question.stem.strip(), *lines, "Answer:"])
    elif question.prompt is not None:
        text = question.prompt
    else:
        text = f"Question: {question.stem}\nAnswer:"
    return f"{question.before} {text}" if question.before else text


def continuations(question: Question, score: Score) -> tuple[str, ...]:
    """The possible answers: the choices' letters or their own texts, each after a space."""
    answers = letters(len(question.choices)) if score == "letters" else question.choices
    return tuple(f" {answer}" for answer in answers)


def few_shot_part(subject: str | None, examples: Sequence[Question], score: Score) -> str:
    """The common beginning of a subject's prompts: the description line and answered examples."""
    answered = [
        f"{ask(example, score)}{continuations(example, score)[example.answer]}\n\n"
        for example in examples
    ]
    return description(subject) + "".join(answered)
