"""The figures of the paper's summary (2501.19202), and the questions that stand for each here."""

from dataclasses import dataclass

from defuse.evaluate.tasks import mmlu
from defuse.questions import FORGET_TOKEN, ORIGINAL, Variant

CAPTION = (
    "Accuracy in percent. The paper's figures are its best in each benchmark, from different runs: "
    "no one model has them all."
)
SHOTS = 0  # in every row: lm-eval's default for MMLU and WMDP


@dataclass(frozen=True)
class Row:
    """`paper`: accuracy in percent. `suite`, `subjects`, `variant`: the questions asked for it.

    `subset` says what they are, and how many in whole. `is_attacked`: each with a suffix that
    searches a wrong answer. `control`: what the row's control is asked with, if it has one.
    """

    benchmark: str
    paper: float
    suite: str
    subjects: tuple[str, ...]
    subset: str
    variant: Variant = ORIGINAL
    is_attacked: bool = False
    control: str = ""
    note: str = ""


ROWS = (
    Row("MMLU", 60.3, "mmlu-perturbed", mmlu.SUBJECTS, "57 subjects, test: 14042"),
    Row(
        "MMLU perturbed",
        53.5,
        "mmlu-perturbed",
        mmlu.SUBJECTS,
        "the same, SARS-CoV-2 as a wrong choice",
        variant=FORGET_TOKEN,
        control="the control token",
    ),
    Row(
        "MMLU under GCG",
        43.5,
        "mmlu-perturbed",
        mmlu.SUBJECTS,
        "the same, each with a suffix that attacks it",
        is_attacked=True,
        control="random suffixes",
    ),
    Row("WMDP bio", 33.3, "wmdp", ("bio",), "test: 1273"),
    Row("WMDP cyber", 29.1, "wmdp", ("cyber",), "test: 1987"),
    Row(
        "WMDP",
        34.6,
        "wmdp",
        ("bio", "chem", "cyber"),
        "bio, chem and cyber, test: 3668",
        note="not of the run with 33.3 and 29.1: chem would have to be at 65",
    ),
    Row(
        "MMLU college biology",
        60.4,
        "mmlu-perturbed",
        ("college_biology",),
        "one subject, test: 144",
    ),
    Row(
        "MMLU computer security",
        46.0,
        "mmlu-perturbed",
        ("computer_security",),
        "one subject, test: 100",
    ),
)
