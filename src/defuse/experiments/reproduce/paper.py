"""The figures of the RNA paper's summary (arXiv 2501.19202), with the questions for each."""

from dataclasses import dataclass

from defuse.evaluate.tasks import mmlu
from defuse.questions import FORGET_TOKEN, ORIGINAL, Variant

CAPTION = (
    "Accuracy in percent. The paper's figures are its best in each benchmark, from different runs: "
    "no single model has them all."
)
SHOTS = 0  # in every row, the default of lm-eval for MMLU and WMDP


@dataclass(frozen=True)
class Row:
    """One figure of the paper (`paper`, accuracy in percent) and the questions behind it.

    `suite`, `subjects`, `variant`: the questions. `subset` describes them, with their number.
    `is_attacked`: each question has a suffix that was searched to make the answer wrong.
    `control`: how the control of the row is asked, if it has one.
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
        note="from another run than 33.3 and 29.1, with which chem would have to be 65",
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
