"""The commands that read the files."""

from dev.fuzz.kinds import Command, split

PLAN = split("unlearn recipe.yaml --plan")
UNLEARN = split("unlearn recipe.yaml")
EVALUATE = "evaluate {} --device cpu --questions {} --out result.json --limit 2"
ATTACK = split(
    "attack model --device cpu --forget forget.jsonl --retain retain.jsonl --limit 2 "
    "--forget-texts forget.txt --retain-texts retain.txt --reference model --out attacked"
)
QUANTISE = (*ATTACK, *split("--kind quantise --set quantise.bits=[8]"))
SWEEP = split(
    "sweep recipe.yaml --forget-questions forget.jsonl --retain-questions retain.jsonl "
    "--runner serial --output swept"
)
EXPERIMENT = split("experiment experiment.yaml")
TOFU = split("tofu tofu.yaml --plan")
FINETUNE = split(
    "finetune model --device cpu --data retain.txt --out tuned --epochs 1 --batch-size 4 "
    "--checkpoint-every 1"
)
REPRODUCE = split("reproduce --model model --device cpu --data data --limit 1 --out reproduced")
BENCHMARK = split(
    "evaluate model --device cpu --suite mmlu-college_biology --data data/mmlu --limit 1 "
    "--out result.json"
)
THEORY = split(
    "theory model --reference model --questions forget.jsonl --perturb terms.txt --device cpu "
    "--limit 2 --out flips"
)


def asks(model: str, questions: str = "forget.jsonl", more: str = "") -> Command:
    return split(f"{EVALUATE.format(model, questions)} {more}")
