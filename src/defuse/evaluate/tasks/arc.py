"""ARC (Clark et al. 1803.05457), three to five choices, asked as lm-evaluation-harness does."""

from defuse.evaluate.tasks.suite import Subject, Suite
from defuse.questions import Columns

ARC = Suite(
    name="arc",
    hub="allenai/ai2_arc",
    home="arc",
    # The hub's folders, and single files.
    files=("{config}/{split}-*.parquet", "{config}-{split}.jsonl"),
    subjects=(Subject("easy", "ARC-Easy"), Subject("challenge", "ARC-Challenge")),
    groups={"arc": ("easy", "challenge")},
    examples="train",
    # Labels are letters in some rows and digits from 1 in others.
    columns=Columns(choices="choices.text", labels="choices.label", answer="answerKey"),
    score="cloze",
)
