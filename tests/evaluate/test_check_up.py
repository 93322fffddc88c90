"""The check-up: perplexity of neutral text and continuations, before and after unlearning."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from defuse.cli import app
from defuse.evaluate import check_up as module
from defuse.evaluate.check_up import CheckUp, as_record, check_up, damage, lines, repeated
from defuse.evaluate.encoding import encode_text
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel, load_model
from defuse.models.locate import locate
from defuse.models.partial_load import find_checkpoint, load_part, present
from tests.conftest import build_llama
from tests.helpers.attacked import lab_pair

TEXT = (
    "The cat sees a small bird.",
    "Anna eats.",
    "Nobody sang in the tree today, or so they say.",
)


def rows_of(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    return [encode_text(text, tokenizer) for text in TEXT]


def test_the_perplexity_is_that_of_a_plain_forward_pass(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model, losses = build_llama(layers=3), []
    for row in rows_of(tiny_tokenizer):
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        losses += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    found = module.neutral_perplexity(Decoder(model), rows_of(tiny_tokenizer))
    assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_a_model_loaded_in_part_is_read_one_block_at_a_time(
    tiny_model_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    name = str(tiny_model_folder)
    rows = rows_of(tiny_tokenizer)
    whole = load_model(name, device="cpu", dtype="float32").model
    model = load_part(name, 1, device="cpu", dtype="float32").model
    checkpoint, seen = find_checkpoint(locate(name), torch.float32), set()

    def absent() -> int:
        return sum(next(block.parameters()).is_meta for block in Decoder(model).blocks)

    @contextmanager
    def watched(part: nn.Module) -> Iterator[None]:
        with present(model, checkpoint, part):
            assert not any(parameter.is_meta for parameter in part.parameters())
            seen.add(absent())
            yield

    blocks = Decoder(model).num_layers
    found = module.neutral_perplexity(Decoder(model), rows, watched)
    assert found == pytest.approx(module.neutral_perplexity(Decoder(whole), rows), rel=1e-6)
    assert seen == {blocks - 1, blocks - 2}  # one block at a time beside the one that is loaded
    assert absent() == blocks - 1
    assert all(part.is_meta for part in Decoder(model).top[0].parameters())


def test_repeated_3_grams_are_counted_within_a_text() -> None:
    """a b c a b c: abc bca cab abc, one of four again; the other text repeats nothing."""
    assert repeated(["a b c a b c", "a b c d"]) == pytest.approx(1 / 6)
    assert repeated(["a b", ""]) == 0


def test_damage_is_said_with_what_to_try() -> None:
    before = CheckUp(20.0, 0.1, {"p": "x"})
    assert damage(before, CheckUp(39.0, 0.39, {"p": "x"})) is None
    worse = damage(before, CheckUp(41.0, 0.1, {"p": "x"}))
    assert worse is not None
    assert "rose 2.0-fold; try fewer steps, a lower learning_rate" in worse or "rose 2.1" in worse
    assert "60% of its text repeats itself" in (damage(before, CheckUp(20.0, 0.6)) or "")
    assert damage(before, CheckUp(math.nan, 0.1)) is not None
    assert damage(CheckUp(), CheckUp()) is None


def test_the_text_of_a_model_cannot_control_the_terminal() -> None:
    record = as_record(CheckUp(2.0, 0.0, {"p": "a\n\x1b[31mb"}), CheckUp(2.0, 0.0, {"p": ""}))
    assert list(lines(record)) == [
        "Perplexity of neutral text: 2.00 → 2.00",
        "p …",
        "  before: a [31mb",
        "  after:  (nothing)",
        "Repeated 3-grams: 0.00 → 0.00",
    ]


def test_neutral_text_that_says_nothing_about_the_model_is_left_out(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedModel(build_llama(layers=2), tiny_tokenizer, "tiny")
    before = check_up(loaded, write=False)
    assert before.perplexity is None
    assert "of the reference model is" in (before.left_out or "")
    assert check_up(loaded, before, write=False) == before
    monkeypatch.setattr(module, "MOST_PERPLEXITY", math.inf)
    assert check_up(loaded, write=False).perplexity
    unknown = check_up(lab_pair().reference, write=False)  # it knows only a small world's words
    assert unknown.perplexity is None
    assert "whose words the tokenizer does not know" in (unknown.left_out or "")


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("forget.txt").write_text("The virus is bad.\n" * 2)
    Path("retain.txt").write_text("A cat sleeps.\n" * 2)
    topic = {"name": "bio", "forget": "forget.txt", "retain": "retain.txt", "weight": 5}
    fields = {
        "model": str(tiny_model_folder),
        "output": "out",
        "method": {"name": "npo"},
        "layer": 2,
        "steps": 1,
        "batch_size": 2,
        "device": "cpu",
        "topics": [topic],
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(fields))
    return Path("recipe.yaml")


def test_unlearn_ends_with_a_check_up_and_the_command_to_run_next(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PERPLEXITY", math.inf)
    result = CliRunner().invoke(app, ["unlearn", str(recipe)], catch_exceptions=False)
    found = json.loads(Path("out/run.json").read_text())["check_up"]
    assert list(found["continuations"]) == list(module.PROMPTS)
    assert "Perplexity of neutral text: {:.2f} → {:.2f}".format(*found["perplexity"]) in (
        result.output
    )
    assert "defuse evaluate out --reference" in result.output
    assert "--questions QUESTIONS --perturb FORGET_TOKENS" in result.output


def test_a_model_loaded_in_part_says_how_to_make_it_write(recipe: Path) -> None:
    settings = ["method.name=rmu", "topics.0.coefficient=2x"]
    result = CliRunner().invoke(app, ["unlearn", str(recipe), *settings], catch_exceptions=False)
    assert "Its upper blocks were not loaded, so it wrote no text here" in result.output
    assert "defuse evaluate --generate" in result.output


def test_without_check_up_there_is_none_and_the_run_is_the_same(recipe: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["unlearn", str(recipe), "check_up=false"], catch_exceptions=False)
    assert "check_up" not in json.loads(Path("out/run.json").read_text())
    assert "erplexity" not in result.output
    again = runner.invoke(app, ["unlearn", str(recipe)], catch_exceptions=False)
    assert "nothing to do" in again.output
