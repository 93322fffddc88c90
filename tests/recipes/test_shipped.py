"""The recipes that come with Defuse: what they say, and how a user finds, copies and runs them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from defuse import cli
from defuse.methods import METHODS
from defuse.recipes import (
    GATED,
    find_recipe,
    shipped_experiments,
    shipped_recipe,
    shipped_recipes,
)
from defuse.unlearning.defaults import default_retain, strength_field
from defuse.unlearning.recipe import Recipe, load_recipe
from defuse.utils.config import dump, parse, without_none
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.datasets_on_the_spot import write_corpora

Run = Callable[..., tuple[int, str, str]]
MODELS = {
    "zephyr-7b-beta": "HuggingFaceH4/zephyr-7b-beta",
    "mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
PAPER = [(model, method) for model in list(MODELS)[:3] for method in METHODS]
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1:test"


def paper_recipe(model: str, method: str) -> dict[str, Any]:
    """The paper's settings, as its code has them; what is left out is the table's."""
    steered = strength_field(method) is not None
    retain = {"source": WIKITEXT, "min_characters": 5} if steered else WIKITEXT
    # RMU and Adaptive RMU cut every retain text after 512 tokens, the others after the topic's own.
    retain_length = 512 if method in ("rmu", "adaptive_rmu") else 768
    bio = {"name": "bio", "forget": "cais/wmdp-bio-forget-corpus", "retain": retain}
    cyber = {"name": "cyber", "forget": "cais/wmdp-corpora:cyber-forget-corpus", "retain": retain}
    mean = {"normalise": "mean"} if method in ("npo", "dpo") else {}
    return {
        "model": MODELS[model],
        "output": f"runs/{model}/{method}",
        "method": {"name": method, **mean},
        "layer": 7,
        "topics": [
            bio | {"forget_length": 512, "retain_length": 512},
            cyber | {"forget_length": 768, "retain_length": retain_length},
        ],
        "batch_size": 4,
        "seed": 42,
    }


def subject_recipe(model: str, subject: str) -> dict[str, Any]:
    corpus = f"cais/wmdp-mmlu-auxiliary-corpora:{subject}-corpus"
    topic = {"name": subject, "forget": corpus, "retain": WIKITEXT}
    recipe = {
        "model": MODELS[model],
        "output": f"runs/{model}/rmu-{subject}",
        "method": {"name": "rmu"},
        "topics": [topic],
        "steps": 250,
    }
    if model == "smollm2":
        elements = without_none(dump(load_recipe(shipped_recipe("smollm2/rmu-hidden_mse"))))
        same = ("steps", "batch_size", "learning_rate", "loss_scale", "shuffle", "dtype")
        recipe |= {"topics": [elements["topics"][0] | topic]}
        recipe |= {name: elements[name] for name in same}
    return recipe


@pytest.mark.parametrize(("model", "method"), PAPER)
def test_the_papers_recipes_have_its_settings_without_and_with_noise(model, method):
    expected = paper_recipe(model, method)
    assert load_recipe(shipped_recipe(f"{model}/{method}")) == parse(Recipe, expected)
    expected |= {"output": f"runs/{model}/{method}-rna", "noise": {"std": 0.03}}
    assert load_recipe(shipped_recipe(f"{model}/{method}-rna")) == parse(Recipe, expected)


def test_the_table_gives_the_papers_figures():
    recipe = load_recipe(shipped_recipe("zephyr-7b-beta/dpo"))
    assert (recipe.steps, recipe.learning_rate, recipe.retain.loss) == (500, 5e-5, "logit_kl")
    assert [topic.settings.weight for topic in recipe.topics] == [30, 50]
    other = load_recipe(shipped_recipe("zephyr-7b-beta/dpo"), ["retain.loss=logit_mse"])
    assert [topic.settings.weight for topic in other.topics] == [5, 20]
    recipe = load_recipe(shipped_recipe("llama-3-8b/rmu-rna"))
    assert (recipe.steps, recipe.learning_rate, recipe.retain.loss) == (500, 5e-5, "hidden_mse")
    topics = [topic.settings for topic in recipe.topics]
    assert [(t.coefficient, t.weight) for t in topics] == [(6.5, 1200), (6.5, 1200)]


@pytest.mark.parametrize("subject", ["economics", "law", "physics"])
@pytest.mark.parametrize("model", ["zephyr-7b-beta", "mistral-7b-v0.3", "smollm2"])
def test_the_harmless_subjects_need_nobodys_leave(model, subject):
    recipe = load_recipe(shipped_recipe(f"{model}/rmu-{subject}"))
    assert recipe == parse(Recipe, subject_recipe(model, subject))
    assert not GATED & set(_hub_ids(recipe))


def _hub_ids(recipe: Recipe) -> list[str]:
    corpora = [corpus for topic in recipe.topics for corpus in (topic.forget, topic.retain)]
    return [recipe.model, *(corpus.source.partition(":")[0] for corpus in corpora)]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_run_into_a_folder_of_its_name_and_tells_where_to_ask(name):
    recipe, text = load_recipe(shipped_recipe(name)), shipped_recipe(name).read_text("utf-8")
    assert recipe.output == f"runs/{name}"
    assert text.startswith("# ")
    for hub_id in _hub_ids(recipe):
        kind = "" if hub_id == recipe.model else "datasets/"
        assert (hub_id in GATED) == (f"#   https://huggingface.co/{kind}{hub_id}\n" in text)


def test_a_recipe_is_found_by_its_file_or_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("zephyr-7b-beta/rmu") == shipped_recipe("zephyr-7b-beta/rmu.yaml")
    Path("example").write_text("model: mine")
    assert find_recipe(Path("example")) == Path("example")
    with pytest.raises(UsageError) as refusal:
        find_recipe("zephyr-7b/rmu-ran")
    assert str(refusal.value).startswith(
        "zephyr-7b/rmu-ran: cannot be read, since it is neither a file nor a shipped recipe; the "
        "nearest are zephyr-7b-beta/rmu-rna, zephyr-7b-beta/rmu"
    )


@pytest.fixture
def run(hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: its exit code, its output and its complaints."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["defuse", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    assert hub == Path.cwd()
    return call


def test_the_list_has_a_line_for_every_recipe(run):
    code, listed, _ = run("recipes")
    assert code == 0
    lines = [line.split() for line in listed.splitlines() if line.strip()]
    assert {line[0] for line in lines} >= {"recipe", *MODELS.values(), *shipped_recipes()}
    assert {line[0] for line in lines} >= {*shipped_experiments()}
    rows = {line[0]: line[1:] for line in lines}
    assert " ".join(rows["zephyr-7b-beta/npo"]) == "logit_kl bio, cyber bio"
    assert " ".join(rows["llama-3-8b/rmu-rna"]) == "hidden_mse 0.03 bio, cyber model, bio"
    assert " ".join(rows["smollm2/rmu-law"]) == "hidden_mse law"
    assert max(map(len, listed.splitlines())) <= 80


def test_a_recipe_is_shown_and_copied_and_never_written_over_another(run):
    text = shipped_recipe("zephyr-7b-beta/rmu").read_text("utf-8")
    assert run("recipes", "show", "zephyr-7b-beta/rmu") == (0, text, "")
    assert run("recipes", "copy", "zephyr-7b-beta/rmu") == (0, "Written: rmu.yaml\n", "")
    assert Path("rmu.yaml").read_text("utf-8") == text
    Path("rmu.yaml").write_text("mine")
    code, _, said = run("recipes", "copy", "zephyr-7b-beta/rmu")
    assert (code, said) == (2, "defuse: to: rmu.yaml exists already; name another file\n")
    assert Path("rmu.yaml").read_text("utf-8") == "mine"
    Path("mine").mkdir()
    assert run("recipes", "copy", "smollm2/rmu-law", "mine")[1] == "Written: mine/rmu-law.yaml\n"
    assert run("recipes", "copy", "example", "new/own.yaml")[1] == "Written: new/own.yaml\n"
    code, _, said = run("recipes", "copy", "mistral/npo")
    assert code == 2
    assert "mistral/npo: is no shipped recipe; the nearest are mistral-7b-v0.3/npo" in said


@pytest.fixture
def stand_ins(hub: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Tiny models and corpora in folders named as those of the hub."""
    for model in MODELS.values():
        build_llama(layers=8).save_pretrained(hub / model)
        tiny_tokenizer.save_pretrained(hub / model)
    write_corpora(hub)
    return hub


@pytest.mark.parametrize(
    "name",
    [
        *(f"zephyr-7b-beta/{method}-rna" for method in METHODS),
        "mistral-7b-v0.3/rmu-law",
        "smollm2/rmu-law",
    ],
)
def test_a_copied_recipe_runs_as_it_stands(run, stand_ins, name):
    run("recipes", "copy", name, "recipe.yaml")
    code, _, said = run("unlearn", "recipe.yaml", "steps=2", "device=cpu")
    assert code == 0, said
    record = json.loads((stand_ins / "runs" / name / "run.json").read_text())
    method = record["recipe"]["method"]["name"]
    assert record["recipe"]["retain"]["loss"] == default_retain(method)
    assert len(record["steps"]) == 2
