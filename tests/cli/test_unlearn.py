"""`defuse unlearn` from a recipe to a checkpoint, and what it refuses before it begins."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from defuse import cli

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def work(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a recipe, its corpora and its model."""
    monkeypatch.chdir(tmp_path)
    Path("forget.txt").write_text("".join(f"The virus number {i} is bad.\n" for i in range(6)))
    Path("retain.txt").write_text("".join(f"A cat number {i} sleeps well.\n" for i in range(9)))
    Path("idk.jsonl").write_text("I don't know.\nNo idea.\n")
    topics = [
        {"name": name, "forget": "forget.txt", "retain": "retain.txt"} for name in ("bio", "cyber")
    ]
    recipe = {"model": str(tiny_model_folder), "output": "out", "method": {"name": "rmu"}}
    recipe |= {"layer": 2, "topics": topics, "steps": 3, "batch_size": 2, "device": "cpu"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.fixture
def run(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: its exit code and what it said."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["defuse", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), capsys.readouterr().err

    assert work == Path.cwd()
    return call


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


METHODS = {
    "rmu": ["noise.std=0.3x"],
    "adaptive_rmu": ["method.scale_per=topic"],
    "rsv": ["retain.loss=logit_kl", "topics.0.packed=true", "topics.0.forget_length=16"],
    "npo": ["noise.std=0.1"],
    "dpo": ["method.refusals=idk.jsonl", "retain.loss=logit_mse"],
    "simnpo": ["retain.loss=hidden_mse", "shuffle=true", "dtype=bfloat16"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_an_ordinary_checkpoint(run, tiny_model_folder, method):
    code, said = run("unlearn", "recipe.yaml", f"method.name={method}", *METHODS[method])
    assert code == 0, said
    record = json.loads(Path("out/run.json").read_text())
    before = load_file(tiny_model_folder / "model.safetensors")
    after = load_file("out/model.safetensors")
    changed = {
        name for name in before if not torch.equal(before[name].to(after[name]), after[name])
    }
    assert changed == set(record["changed"])
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1, 2)}
    assert AutoModelForCausalLM.from_pretrained("out").dtype == after["lm_head.weight"].dtype
    assert AutoTokenizer.from_pretrained("out")("a cat")["input_ids"][0] == 1


@pytest.mark.parametrize("method", ["rmu", "npo"])
def test_reading_and_rewriting_in_part_gives_what_the_whole_model_gives(
    run, sharded_model_folder, method, monkeypatch
):
    choice = [f"model={sharded_model_folder}", f"method.name={method}", "learning_rate=1e-2"]
    assert run("unlearn", "recipe.yaml", *choice)[0] == 0
    monkeypatch.setattr("defuse.unlearning.output.find_checkpoint", lambda *_: None)
    assert run("unlearn", "recipe.yaml", *choice, "output=whole")[0] == 0
    parts = sorted(path.name for path in sharded_model_folder.glob("*.safetensors"))
    assert sorted(path.name for path in Path("out").glob("*.safetensors")) == parts
    found, expected = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        for folder in ("out", "whole")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    question = {"question": "What is it?", "choices": ["a", "b", "c", "d"], "answer": 1}
    Path("q.jsonl").write_text(json.dumps(question))
    assert run("evaluate", "out", "--questions", "q.jsonl", "--out", "out.json")[0] == 0


def test_the_run_file_holds_what_is_needed_to_trust_it(run):
    run("unlearn", "recipe.yaml", "noise.std=0.3x")
    record = json.loads(Path("out/run.json").read_text())
    assert record["recipe"]["noise"] == {"std": "0.3x", "variance": None, "layers": None}
    assert record["recipe"]["learning_rate"] == 5e-5
    assert [step["topic"] for step in record["steps"]] == ["bio", "cyber", "bio"]
    assert all(step["forget_loss"] > 0 and step["seconds"] > 0 for step in record["steps"])
    assert {"python", "torch", "transformers", "defuse"} <= set(record["versions"])
    assert record["seconds"] > 0
    assert record["peak_memory_bytes"] > 10**6


def test_a_log_file_has_a_line_for_each_stage_and_the_losses(run):
    _, said = run("unlearn", "recipe.yaml")
    lines = said.splitlines()
    stages = [line for line in lines if line.endswith((" 0 of 1", " 0 of 3"))]
    assert stages[1:3] == ["check-up: 0 of 1", "unlearning: 0 of 3"]
    losses = r"out: 3 steps in \d+ s \(bio: forget [\d.e+-]+, retain [\d.e+-]+\)"
    assert any(re.fullmatch(losses, line) for line in lines)


def test_two_runs_of_one_recipe_are_equal(run):
    run("unlearn", "recipe.yaml", "noise.std=0.3x")
    run("unlearn", "recipe.yaml", "noise.std=0.3x", "output=again")
    one, other = (load_file(f"{name}/model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_not_done_again_and_never_overwritten(run, monkeypatch):
    run("unlearn", "recipe.yaml")
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    monkeypatch.setattr("defuse.unlearning.output.load_part", None)
    code, said = run("unlearn", "recipe.yaml")
    assert (code, "finished" in said) == (0, True)
    code, said = run("unlearn", "recipe.yaml", "seed=1")
    assert code == 2
    assert "output: out holds another run, with other seed; name a new folder" in said
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


REFUSED = [
    ("stepz=1", "has no field 'stepz'"),
    ("steps=0", "steps: 0"),
    ("method.name=foo", "names no method"),
    ("method.beta=0.1", "has no field 'beta'; it takes name, vector"),
    ("noise={std: 1, variance: 1}", "give exactly one of the two"),
    ("layer=4", "layer: 4"),
    ("train.layers=[2, 3]", "train.layers: [3]"),
    ("train.layers=[9]", "train.layers: [9]"),
    ("train.parameters=mlp.nothing", "train.parameters: 'mlp.nothing' matches nothing"),
    ("topics=[]", "topics: []"),
    ("topics.0.forget=gone.txt", "gone.txt: no such file"),
    ("topics.0.forget=empty.txt", "empty.txt: holds no text"),
    ("topics.0.retain=broken.jsonl", "broken.jsonl, line 2: is not valid JSON"),
    ("topics.0.forget=.", ".: is no corpus"),
    ("method={name: dpo, refusals: gone.jsonl}", "gone.jsonl: no such file"),
    ("model=gone/for/ever", "model: no such folder: gone/for/ever does not exist"),
    ("model=.", "model: . holds no model"),
    ("model=pickled", "model: pickled has its weights in pickle files"),
    ("model=odd", "architecture 'bloom' is not supported; use one of llama"),
    ("device=abacus", "device: 'abacus' is unknown"),
    ("dtype=int3", "dtype: 'int3' is unknown"),
    ("output=idk.jsonl", "output: idk.jsonl"),
    ("output=idk.jsonl/out", "output: idk.jsonl/out cannot be written"),
    ("output=pickled", "output: pickled holds another run or other files"),
]


@pytest.mark.parametrize(("override", "sentence"), REFUSED)
def test_bad_input_is_one_line_and_code_2_before_any_weights(
    run, work, tiny_model_folder, monkeypatch, override, sentence
):
    Path("empty.txt").write_text("\n \n")
    Path("broken.jsonl").write_text('{"text": "x"}\n{"text"\n')
    config = json.loads((tiny_model_folder / "config.json").read_text())
    for name, kind, weights in [
        ("pickled", "llama", "pytorch_model.bin"),
        ("odd", "bloom", "model.safetensors"),
    ]:
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config | {"model_type": kind}))
        Path(name, weights).touch()
    before = contents(work)
    monkeypatch.setattr(
        "defuse.unlearning.output.load_model", None
    )  # calling it would be a TypeError
    code, said = run("unlearn", "recipe.yaml", override)
    assert code == 2
    assert sentence in said
    assert said.count("\n") == 1
    assert contents(work) == before


def test_a_missing_recipe_is_refused(run):
    code, said = run("unlearn", "gone.yaml")
    assert code == 2
    assert "gone.yaml: cannot be read" in said


def test_a_text_too_short_to_learn_from_is_refused_before_training(run, work):
    Path("pairs.jsonl").write_text(json.dumps({"question": "What is it?" * 9, "answer": "x"}))
    before, short = contents(work), "topics.0.forget_length=8"
    code, said = run("unlearn", "recipe.yaml", "topics.0.forget=pairs.jsonl", short)
    assert code == 2
    assert "leave nothing to predict; raise the topic's length" in said
    assert contents(work) == before


def test_a_loss_that_is_not_finite_stops_with_a_sentence(run, work):
    before = contents(work)
    code, said = run("unlearn", "recipe.yaml", "learning_rate=1e30", "steps=20")
    assert code == 2
    assert "learning_rate: at step" in said
    assert "lower learning_rate" in said
    assert contents(work) == before


def test_ctrl_c_while_training_leaves_nothing_behind(run, work, monkeypatch):
    before = contents(work)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("defuse.utils.progress.PlainProgress.advance", interrupted)
    code, _ = run("unlearn", "recipe.yaml")
    assert code == 130
    assert contents(work) == before


def test_ctrl_c_while_writing_leaves_nothing_behind(run, work, monkeypatch):
    before = contents(work)

    def interrupted(*arguments: Any) -> None:
        (arguments[-1] / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("defuse.unlearning.output.write_changed", interrupted)
    code, _ = run("unlearn", "recipe.yaml")
    assert code == 130
    assert contents(work) == before


def test_a_disk_that_fills_up_is_a_sentence_and_leaves_nothing_behind(run, work, monkeypatch):
    before = contents(work)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("defuse.unlearning.output.write_changed", full)
    code, said = run("unlearn", "recipe.yaml")
    assert code == 2
    assert "output: out cannot be written" in said
    assert "No space left on device" in said
    assert contents(work) == before


def test_help_is_instant():
    script = "import sys, defuse.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603


def test_the_command_is_installed():
    command = shutil.which("defuse", path=str(Path(sys.executable).parent))
    assert command is not None
    said = subprocess.run([command, "--help"], check=True, capture_output=True, text=True)  # noqa: S603
    assert "unlearn" in said.stdout


def resave(folder: Path, source: Path, change: Callable[[Any, Any], None]) -> str:
    """A copy of the tiny model after `change(model, tokenizer)`."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(source),
        AutoTokenizer.from_pretrained(source),
    )
    change(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"model={folder}"


def test_half_precision_that_loses_gradients_is_refused_before_any_weights(run, tiny_model_folder):
    code, said = run("unlearn", "recipe.yaml", "dtype=float16")
    assert (code, Path("out").exists()) == (2, False)
    assert "dtype: 'float16' loses small gradients" in said
    half = resave(Path("half"), tiny_model_folder, lambda model, _: model.half())
    assert run("unlearn", "recipe.yaml", half)[0] == 2
    assert run("unlearn", "recipe.yaml", half, "dtype=bfloat16")[0] == 0


def test_a_text_longer_than_the_model_reads_is_refused_before_any_weights(run, tiny_model_folder):
    def shorten(model: Any, _: Any) -> None:
        model.config.max_position_embeddings = 8

    short = resave(Path("short"), tiny_model_folder, shorten)
    code, said = run("unlearn", "recipe.yaml", short)
    assert code == 2
    assert "topics.bio.forget: a text of" in said
    assert "is longer than the 8 that the model reads; lower the topic's length" in said
    cut = [f"topics.{i}.{kind}_length=8" for i in (0, 1) for kind in ("forget", "retain")]
    assert run("unlearn", "recipe.yaml", short, *cut)[0] == 0


def test_a_token_without_an_embedding_is_refused_but_as_masked_padding_does_no_harm(
    run, tiny_model_folder
):
    def add_padding(_: Any, tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})

    def add_word(_: Any, tokenizer: Any) -> None:
        tokenizer.add_tokens(["virus"])

    padded = resave(Path("padded"), tiny_model_folder, add_padding)
    assert run("unlearn", "recipe.yaml", padded)[0] == 0
    worded = resave(Path("worded"), tiny_model_folder, add_word)
    code, said = run("unlearn", "recipe.yaml", worded, "output=other")
    assert code == 2
    assert "topics.bio.forget: token id 320 has no embedding, the model has 320" in said


def test_packed_question_answer_pairs_are_refused_where_only_answers_may_count(run):
    pair = {"question": "Which virus is bad?", "answer": "Number one."}
    Path("forget.jsonl").write_text(f"{json.dumps(pair)}\n" * 4)
    pairs = [f"topics.{i}.forget=forget.jsonl" for i in (0, 1)]
    packed = ["topics.0.packed=true", "topics.0.forget_length=16"]
    code, said = run("unlearn", "recipe.yaml", "method.name=npo", *pairs, *packed)
    assert code == 2
    assert "topics.bio.packed: True would count questions like answers" in said
    assert run("unlearn", "recipe.yaml", "method.name=npo", *pairs)[0] == 0


def test_an_output_that_is_a_link_to_an_empty_folder_is_filled(run):
    Path("elsewhere").mkdir()
    Path("out").symlink_to("elsewhere")
    assert run("unlearn", "recipe.yaml")[0] == 0
    assert Path("out").is_symlink()
    assert Path("elsewhere/run.json").is_file()


def test_a_broken_config_and_a_machine_out_of_memory_are_one_sentence(
    run, tiny_model_folder, monkeypatch
):
    shutil.copytree(tiny_model_folder, "broken")
    config = json.loads(Path("broken/config.json").read_text())
    Path("broken/config.json").write_text(json.dumps(config | {"num_attention_heads": "four"}))
    code, said = run("unlearn", "recipe.yaml", "model=broken")
    assert code == 2
    assert said.startswith("defuse: model: broken/config.json: num_attention_heads: 'four' is no")

    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("defuse.unlearning.output.load_part", out_of_memory)
    code, said = run("unlearn", "recipe.yaml")
    assert (code, Path("out").exists()) == (2, False)
    assert said.endswith(
        "defuse: device: out of memory; lower batch_size or the topics' lengths, or use another\n"
    )
