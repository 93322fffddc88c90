"""The commands, examples and links of README and docs work as written.

Only hub ids are replaced, by a tiny model and small files of the same format.
"""

import json
import re
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from defuse.attacks import AttackData
from defuse.cli import app
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import parse
from tests.conftest import build_llama
from tests.helpers.attacked import lab_data, lab_pair, untouched
from tests.helpers.benchmark_files import write_mmlu_csv, write_wmdp_json
from tests.helpers.datasets_on_the_spot import write_corpora

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TERMS = {"forget-terms.txt": ["gold", "iron"], "control-terms.txt": ["moon", "bird"]}
TEXTS = {
    "forget.txt": ["Gold is a metal with the symbol Au.", "Iron is a metal, its symbol is Fe."],
    "retain.txt": ["The cat sees a small bird in the tree.", "He sang of jazz, dusk, plum, quip."],
    "prompts.txt": ["The cat"],
}
QUESTIONS = [
    {"question": f"What is {i} and one?", "choices": ["one", "two", "three", "four"], "answer": i}
    for i in range(4)
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


@pytest.fixture
def workplace(hub: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with every file that the docs mention, and a model of eight layers."""
    write_corpora(hub)
    (hub / "HuggingFaceH4").mkdir()
    (hub / "HuggingFaceH4" / "zephyr-7b-beta").symlink_to(hub / "model")
    build_llama(layers=8).save_pretrained(hub / "model")
    tiny_tokenizer.save_pretrained(hub / "model")
    for name, lines in (TERMS | TEXTS).items():
        (hub / name).write_text("\n".join(lines))
    questions = "\n".join(map(json.dumps, QUESTIONS))
    names = ("questions.jsonl", "forget-questions.jsonl", "retain-questions.jsonl")
    for name in names:
        (hub / name).write_text(questions + "\n" + json.dumps({**QUESTIONS[0], "id": "x"}))
    examples = [{**QUESTIONS[i % 4], "question": f"Example {i}?"} for i in range(5)]
    (hub / "dev.jsonl").write_text("\n".join(map(json.dumps, examples)))
    write_mmlu_csv(hub / "data/mmlu", count=1)
    write_wmdp_json(hub / "data/wmdp", count=1)
    pair = {"question": "What does the cat see?", "answer": "A bird."}
    (hub / "pairs.jsonl").write_text(json.dumps(pair))
    (recipe,) = blocks(ROOT / "docs" / "quickstart.md", "yaml")
    (hub / "recipe.yaml").write_text(localise(recipe).replace("steps: 80", "steps: 2"))
    return hub


def localise(text: str) -> str:
    return (
        text.replace(MODEL, "model")
        .replace("cais/mmlu:college_biology:test", "questions.jsonl")
        .replace("cais/mmlu:college_biology:dev", "dev.jsonl")
        .replace("locuslab/TOFU:full", "pairs.jsonl")
        .replace("locuslab/TOFU:retain99", "pairs.jsonl")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_defuse_commands_run(page: Path, workplace: Path) -> None:
    found = [shlex.split(localise(line)) for line in commands(page) if line.startswith("defuse ")]
    if page.name in ("evaluation.md", "theory.md", "attacks.md"):  # they continue the quick start
        found = [
            ["defuse", "unlearn", "recipe.yaml", f"output=runs/{n}"] for n in ("first", "second")
        ] + found
    for command in found:
        if command[1] in ("real", "lab", "tofu", "experiment"):
            continue  # tests/experiments
        if any("runs/real/" in word for word in command):
            continue  # continues make real, with its files
        if command[1] == "sweep":
            command.append("--plan")  # all but the runs themselves: test_sweep.py
        if command[1] == "attack" and "--kind" not in command:
            command.append("--plan")  # all kinds take long: test_attack_*.py
        result = CliRunner().invoke(app, command[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        if "--out" in command and "--plan" not in command:
            assert (workplace / command[command.index("--out") + 1]).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_and_modules_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in commands(page):
        words = line.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, line
        if words[:2] == ["python", "-m"]:
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), line


def test_the_makefile_imports_what_exists() -> None:
    found = re.findall(r"from (defuse[\w.]*) import (\w+)", (ROOT / "Makefile").read_text("utf-8"))
    for module, name in found:
        assert hasattr(import_module(module), name), f"{module}.{name}"


def test_the_corpora_shown_are_what_a_recipe_takes() -> None:
    shown = blocks(ROOT / "docs" / "corpora.md", "yaml")
    assert shown
    for text in shown:
        given = {"model": MODEL, "output": "out", "method": {"name": "rmu"}} | yaml.safe_load(text)
        assert parse(Recipe, given).topics


def test_the_corpora_shown_in_python_are_topics() -> None:
    (code,) = blocks(ROOT / "docs" / "corpora.md", "python")
    page: dict[str, Any] = {}
    exec(compile(code, "corpora.md", "exec"), page)  # noqa: S102 (our own page)
    assert page["topic"].forget == ("The bridge opened in 1932.", "It has four lanes.")


def test_the_readme_s_python_example_runs(workplace: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(localise(code), "README.md", "exec"), {})  # noqa: S102 (our own README)
    assert (workplace / "runs/readme/model.safetensors").is_file()


def test_the_example_for_large_models_runs(workplace: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "large-models.md", "python")
    exec(compile(localise(code), "large-models.md", "exec"), {})  # noqa: S102 (our own page)
    assert (workplace / "runs/large/model.safetensors").is_file()


QUESTIONS_ATTACKED = 24
ATTACKS = [
    (page, code)
    for page in ("attacks.md", "attacks-asking.md", "attacks-inside.md")
    for code in blocks(ROOT / "docs" / page, "python")
]


@pytest.mark.parametrize(("page", "code"), ATTACKS, ids=range(len(ATTACKS)))
def test_the_examples_of_attacks_run(
    page: str, code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first questions of each set only: all of the lab's take minutes."""

    def first_questions(forget: Sequence[Any], retain: Sequence[Any], **texts: Any) -> AttackData:
        return AttackData(forget[:QUESTIONS_ATTACKED], retain[:QUESTIONS_ATTACKED], **texts)

    monkeypatch.setattr("defuse.attacks.AttackData", first_questions)
    (workplace / "runs").mkdir()
    (workplace / "runs" / "first").symlink_to(workplace / "model")
    exec(compile(localise(code), page, "exec"), {})  # noqa: S102 (our own page)


def test_the_guide_s_new_attack_finds_what_it_says() -> None:
    *_, code = blocks(ROOT / "docs" / "attacks.md", "python")
    guide: dict[str, Any] = {"__name__": "guide"}
    exec(compile(code, "attacks.md", "exec"), guide)  # noqa: S102 (our own page)
    base, config = lab_pair().reference, guide["Jitter"](shares=(0.0, 2.0))
    with untouched(base.model):
        result = guide["run"](base.model, base.tokenizer, lab_data(12, 12), config)
    same, broken = (condition.effects["forget"] for condition in result.conditions)
    assert same.before == same.after
    assert broken.after.accuracy.value < broken.before.accuracy.value == 1


def test_the_guide_s_new_method_runs(workplace: Path) -> None:
    whole, line = blocks(ROOT / "docs" / "adding-a-method.md", "python")
    (readme,) = blocks(ROOT / "README.md", "python")
    code = readme.replace("method=RMU()", "method=Silence()")
    assert "method=Silence()" in line
    source = whole.partition('"""\n\n')[2] + localise(code)
    exec(compile(source, "adding-a-method.md", "exec"), {"__name__": "guide"})  # noqa: S102
    assert (workplace / "runs/readme/model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_changelog_has_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    version = re.search(r'^version = "(.+)"', project, re.M)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
