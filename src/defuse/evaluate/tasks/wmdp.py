"""WMDP (Li et al. 2403.03218) as lm-evaluation-harness asks it, and related retain questions."""

from dataclasses import replace

from defuse.evaluate.tasks import mmlu
from defuse.evaluate.tasks.suite import PERTURBATION, Subject, Suite

WMDP = Suite(
    name="wmdp",
    hub="cais/wmdp",
    home="wmdp",
    # The hub's folders, single files, and the authors' archive.
    files=(
        "{config}/{split}-*.parquet",
        "{config}.parquet",
        "{config}.json",
        "{config}.jsonl",
        "{name}_questions.json",
    ),
    subjects=(
        Subject("bio", "wmdp-bio", "biology"),
        Subject("chem", "wmdp-chem", "chemistry"),
        Subject("cyber", "wmdp-cyber", "cybersecurity"),
    ),
    groups={"wmdp": ("bio", "chem", "cyber")},
)

# Knowledge that unlearning should retain: the MMLU subjects closest to WMDP's two topics, under
# WMDP's own description lines.
RETAIN = Suite(
    name="wmdp-retain",
    hub=mmlu.HUB,
    home="mmlu",
    files=mmlu.FILES,
    subjects=(
        Subject("bio", "college_biology", "biology"),
        Subject("cyber", "computer_security", "cybersecurity"),
    ),
    groups={"wmdp-retain": ("bio", "cyber")},
    examples="dev",
)
PERTURBED_RETAIN = replace(RETAIN, name="wmdp-retain-perturbed", perturbation=PERTURBATION)
