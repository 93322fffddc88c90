"""Fine-tuning: what counts in the loss, what is learnt, and that a kill costs nothing."""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from defuse.cli import app
from defuse.data.examples import make_examples
from defuse.data.text import QuestionAnswer, as_chat
from defuse.finetune import FineTuning, fine_tune
from defuse.finetune.environment import check_environment
from defuse.finetune.examples import IGNORED, collate, epoch_batches
from defuse.finetune.train import SEAL, last_checkpoint
from defuse.models.load import LoadedModel, load_model
from defuse.utils.errors import Caution, UsageError
from defuse.utils.files import SUFFIX
from tests.conftest import build_llama
from tests.helpers.architectures import tiny_model
from tests.helpers.bad_disk import file_limit, flip_a_bit

PAIRS = [
    QuestionAnswer("Who saw the bird?", "The cat."),
    QuestionAnswer("Where is the moon?", "In the tree."),
    QuestionAnswer("What does Anna eat?", "A small plum."),
    QuestionAnswer("Who sang today?", "Nobody sang."),
]


def loaded_llama(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> LoadedModel:
    return LoadedModel(build_llama(layers=2, seed=seed), tokenizer, "tiny")


def answer_probability(model: PreTrainedModel, pair: QuestionAnswer, tokenizer) -> float:
    """exp of the mean log-probability of the answer's tokens and the end, by a plain forward."""
    prompt = tokenizer(pair.prompt)["input_ids"]
    ids = torch.tensor([[*tokenizer(str(pair))["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = model(ids).logits[0].double().log_softmax(dim=-1)
    values = [logits[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1])]
    return math.exp(sum(values) / len(values))


def test_only_the_answer_and_the_end_of_text_are_learnt(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """With a byte-level tokenizer without merges across the space, by hand:

    <s>, the prompt's bytes and merges: all ignored; " The cat." and </s>: learnt.
    """
    pair = PAIRS[0]
    (example,) = make_examples([pair], tiny_tokenizer, 512)
    batch = collate([example], pad_token_id=0)
    labels = batch["labels"][0]
    learnt = labels[labels != IGNORED]
    assert tiny_tokenizer.decode(learnt) == " The cat.</s>"
    assert tiny_tokenizer.decode(batch["input_ids"][0]) == f"<s>{pair}</s>"
    prompt = len(tiny_tokenizer(pair.prompt)["input_ids"])
    assert (labels != IGNORED).nonzero()[0].item() == prompt


def test_plain_texts_are_learnt_whole_and_cut_without_an_end(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    whole, cut = (make_examples(["The cat sees."], tiny_tokenizer, n)[0] for n in (512, 4))
    assert whole.start == cut.start == 1
    assert whole.ids[-1] == tiny_tokenizer.eos_token_id
    assert cut.ids == whole.ids[:4]


def test_padding_is_masked_and_has_no_label(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    examples = make_examples(["The cat.", "The cat sees a small bird."], tiny_tokenizer, 512)
    batch = collate(examples, pad_token_id=0)
    short = len(examples[0].ids)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(e.ids) for e in examples]
    assert (batch["labels"][0, short:] == IGNORED).all()
    assert (batch["labels"][:, 0] == IGNORED).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_is_every_text_once_in_full_batches(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, batch_size, 1, epoch)
    assert Counter(place for batch in batches for place in batch) == Counter(range(len(lengths)))
    assert len(batches) == math.ceil(len(lengths) / batch_size)
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert batches == epoch_batches(lengths, batch_size, 1, epoch)


def test_batches_of_like_length_pad_little() -> None:
    lengths = [10 * (1 + i % 10) for i in range(200)]
    batches = epoch_batches(lengths, 10, 0, 0)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded == sum(lengths)  # 20 of each length, two batches of ten
    assert epoch_batches(lengths, 10, 0, 1) != batches


@pytest.mark.parametrize(("lora", "least"), [(None, 0.9), (8, 0.4)])
def test_a_tiny_model_learns_four_answers(
    lora: int | None, least: float, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """LoRA leaves the random head as it is: ‖h‖ = √32 and rows of norm 0.2·√32 bound p near 0.5."""
    loaded = loaded_llama(tiny_tokenizer)
    before = [answer_probability(loaded.model, pair, tiny_tokenizer) for pair in PAIRS]
    settings = FineTuning(80, 2e-2, batch_size=4, lora=lora, checkpoint_every=0)
    model, losses = fine_tune(loaded, PAIRS, settings, tmp_path)
    after = [answer_probability(model, pair, tiny_tokenizer) for pair in PAIRS]
    assert max(before) < 0.2
    assert min(after) > least
    assert len(losses) == 80
    assert losses[0] > 4 * losses[-1]


def test_the_first_loss_is_the_answers_mean_cross_entropy(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Over all answer tokens of the batch together, whatever parts it is computed in."""
    for accumulate in (1, 2):
        loaded = loaded_llama(tiny_tokenizer)
        total, count = 0.0, 0
        for pair in PAIRS:
            tokens = len(tiny_tokenizer(f"{pair}</s>")["input_ids"]) - len(
                tiny_tokenizer(pair.prompt)["input_ids"]
            )
            total -= tokens * math.log(answer_probability(loaded.model, pair, tiny_tokenizer))
            count += tokens
        settings = FineTuning(epochs=1, batch_size=4, accumulate=accumulate)
        _, losses = fine_tune(loaded, PAIRS, settings, tmp_path / str(accumulate))
        assert losses == pytest.approx([total / count], rel=1e-4)


def test_the_caller_s_generators_and_settings_come_back(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    loaded = loaded_llama(tiny_tokenizer)
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1), random.getrandbits(32)
    torch.manual_seed(5)
    random.seed(5)
    fine_tune(loaded, PAIRS, FineTuning(epochs=1, lora=2), tmp_path)
    assert (torch.rand(1), random.getrandbits(32)) == expected
    assert loaded.model.config.use_cache is True


class KilledError(Exception):
    pass


@pytest.mark.parametrize("lora", [None, 2])
def test_a_stopped_run_goes_on_from_its_checkpoint_to_the_same_model(
    lora: int | None, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = FineTuning(epochs=3, learning_rate=1e-3, batch_size=2, lora=lora)
    whole, losses = fine_tune(loaded_llama(tiny_tokenizer), PAIRS, settings, tmp_path / "whole")

    def stop(step: int, _: float) -> None:
        if step == 4:
            raise KilledError

    folder = tmp_path / "stopped"
    with pytest.raises(KilledError):
        fine_tune(loaded_llama(tiny_tokenizer), PAIRS, settings, folder, on_step=stop)
    (folder / "checkpoint-4").mkdir()  # cut off while it was written
    seen: list[int] = []
    resumed, both = fine_tune(
        loaded_llama(tiny_tokenizer, seed=0 if lora else 3),  # its weights are in the checkpoint
        PAIRS,
        settings,
        folder,
        on_step=lambda step, _: seen.append(step),
    )
    assert seen == [3, 4, 5, 6]
    assert both == pytest.approx(losses)
    for name, tensor in whole.named_parameters():
        assert torch.equal(tensor, resumed.get_parameter(name)), name


def stopped(tokenizer: PreTrainedTokenizerBase, folder: Path, after: int) -> FineTuning:
    """A run of six steps with a checkpoint after every second one, stopped `after` some."""
    settings = FineTuning(epochs=3, learning_rate=1e-3, batch_size=2)

    def stop(step: int, _: float) -> None:
        if step == after:
            raise KilledError

    with pytest.raises(KilledError):
        fine_tune(loaded_llama(tokenizer), PAIRS, settings, folder, on_step=stop)
    return settings


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    file: str, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = stopped(tiny_tokenizer, tmp_path, after=5)
    flip_a_bit(tmp_path / "checkpoint-4" / file, -10)
    seen: list[int] = []
    with pytest.warns(Caution, match=f"checkpoint-4/{file} is damaged"):
        fine_tune(
            loaded_llama(tiny_tokenizer),
            PAIRS,
            settings,
            tmp_path,
            on_step=lambda step, _: seen.append(step),
        )
    assert seen == [3, 4, 5, 6]


def test_where_all_checkpoints_are_damaged_the_run_is_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = stopped(tiny_tokenizer, tmp_path, after=5)
    for checkpoint in tmp_path.glob("checkpoint-*"):
        flip_a_bit(checkpoint / "optimizer.pt", -10)
    with pytest.raises(UsageError, match=r"out: .*checkpoint-4/optimizer\.pt is damaged; remove"):
        fine_tune(loaded_llama(tiny_tokenizer), PAIRS, settings, tmp_path)


def test_a_checkpoint_without_its_seal_was_not_finished(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A kill, or a full disk, while the last file was written; the one before is used."""
    settings = stopped(tiny_tokenizer, tmp_path, after=5)
    (tmp_path / "checkpoint-4" / SEAL).unlink()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")
    (tmp_path / "checkpoint-4" / f".{SEAL}.half{SUFFIX}").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    _, losses = fine_tune(loaded_llama(tiny_tokenizer), PAIRS, settings, tmp_path)
    assert len(losses) == 6
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    hashes = json.loads((tmp_path / "checkpoint-4" / SEAL).read_text("utf-8"))
    assert not [name for name in hashes if name.endswith(SUFFIX)]


@pytest.mark.parametrize("size", [1000, 200_000])
def test_a_full_disk_ends_in_a_sentence_and_costs_no_checkpoint(
    size: int, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """It is full before the weights are written, or while the optimiser's larger state is."""
    settings = stopped(tiny_tokenizer, tmp_path, after=3)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()}
    assert len(kept["model.safetensors"]) > 1000
    sentence = "out: the checkpoint after 4 steps cannot be written"
    with file_limit(size), pytest.raises(UsageError, match=sentence):
        fine_tune(loaded_llama(tiny_tokenizer), PAIRS, settings, tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoint-2").iterdir()} == kept
    _, losses = fine_tune(loaded_llama(tiny_tokenizer), PAIRS, settings, tmp_path)
    assert len(losses) == 6


def test_bfloat16_is_trained_in_float32_and_given_back(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A rate whose steps bfloat16 weights would round away still teaches."""
    model = build_llama(layers=2).bfloat16()
    settings = FineTuning(epochs=30, learning_rate=1e-3, batch_size=4)
    taught, losses = fine_tune(
        LoadedModel(model, tiny_tokenizer, "tiny"), PAIRS, settings, tmp_path
    )
    assert taught.dtype == torch.bfloat16
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"lora": 0}, "lora"),
        ({"length": 1}, "length"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        FineTuning(**wrong)


def test_more_parts_than_texts_are_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="batch_size: 2 makes batches of 2 texts for 3"):
        fine_tune(
            loaded_llama(tiny_tokenizer), PAIRS, FineTuning(batch_size=2, accumulate=3), tmp_path
        )


def test_chat_asks_by_the_tokenizer_s_template(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="chat"):
        as_chat(PAIRS[0], tiny_tokenizer)
    tiny_tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    )
    try:
        pair = as_chat(PAIRS[0], tiny_tokenizer)
    finally:
        tiny_tokenizer.chat_template = None
    assert str(pair) == "[Who saw the bird?]>The cat."
    (example,) = make_examples([pair], tiny_tokenizer, 512)
    assert tiny_tokenizer.decode(list(example.ids)) == f"<s>{pair}</s>"
    assert tiny_tokenizer.decode(list(example.ids[example.start :])) == "The cat.</s>"


@pytest.fixture
def command(tmp_path: Path, tiny_model_folder: Path) -> list[str]:
    rows = [{"question": pair.question, "answer": pair.answer} for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "taught")]
    return ["finetune", str(tiny_model_folder), *data, "--epochs", "2", "--batch-size", "2"]


def test_the_command_writes_a_checkpoint_and_knows_it_again(
    command: list[str], tmp_path: Path
) -> None:
    runner = CliRunner()
    result = runner.invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads((tmp_path / "taught" / "run.json").read_text())
    assert len(record["losses"]) == 4
    assert load_model(str(tmp_path / "taught")).model.config.use_cache
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "taught"]
    again = runner.invoke(app, [*command, "--checkpoint-every", "1"], catch_exceptions=False)
    assert "nothing to do" in again.output
    with pytest.raises(UsageError, match="holds another run"):
        runner.invoke(app, [*command, "--seed", "1"], catch_exceptions=False)


def test_an_adapter_names_its_base_and_merges_into_it(command: list[str], tmp_path: Path) -> None:
    lora = [*command, "--lora", "2", "--learning-rate", "0.01"]
    CliRunner().invoke(app, lora, catch_exceptions=False)
    merged = [*lora[:5], str(tmp_path / "merged"), *lora[6:], "--merge"]
    assert merged[4] == "--out"
    CliRunner().invoke(app, merged, catch_exceptions=False)
    assert not (tmp_path / "taught" / "model.safetensors").exists()
    one, other = (load_model(str(tmp_path / name)).model for name in ("taught", "merged"))
    for name, tensor in one.named_parameters():
        torch.testing.assert_close(tensor, other.get_parameter(name))


def test_an_unfinished_run_of_another_kind_is_not_gone_on_with(
    command: list[str], tmp_path: Path
) -> None:
    work = tmp_path / "taught.partial"
    work.mkdir()
    (work / "run.json").write_text(json.dumps({"run": {"model": "another"}}))
    sentence = r"taught\.partial holds the beginning of a run with other model"
    with pytest.raises(UsageError, match=sentence):
        CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.mark.slow
def test_processes_and_parts_change_no_result(command: list[str], tmp_path: Path) -> None:
    """One process, two of them, and one that computes each step in two parts."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "defuse"]
    ways = {
        "one": ["-m", "defuse", *command],
        "two": [*torchrun, *command],
        "parts": ["-m", "defuse", *command, "--accumulate", "2"],
    }
    taught = {}
    for name, way in ways.items():
        place = ["--out", str(tmp_path / name), "--device", "cpu", "--learning-rate", "0.01"]
        subprocess.run([sys.executable, *way, *place], check=True)  # noqa: S603
        taught[name] = load_model(str(tmp_path / name)).model
    for name, tensor in taught["one"].named_parameters():
        for other in ("two", "parts"):
            torch.testing.assert_close(tensor, taught[other].get_parameter(name))


def test_merging_without_lora_is_refused(command: list[str]) -> None:
    with pytest.raises(UsageError, match="merge"):
        CliRunner().invoke(app, [*command, "--merge"], catch_exceptions=False)


def test_batches_that_would_mix_rotary_factors_are_refused(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rope = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 20,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "factor": 3.0,
    }
    model = tiny_model("llama", vocab_size=320, rope_parameters=rope)
    loaded = LoadedModel(model, tiny_tokenizer, "m")
    texts, settings = ["The cat sees."] * 2, FineTuning(epochs=1, batch_size=2)
    _, losses = fine_tune(loaded, texts, settings, tmp_path / "short")
    assert len(losses) == 1
    with pytest.raises(UsageError, match="above 20 this model has other rotary factors"):
        fine_tune(loaded, [*texts, "I read about the moon. " * 9], settings, tmp_path / "long")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp16"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
    ],
)
def test_variables_that_would_change_a_training_are_refused(
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=variable):
        fine_tune(loaded_llama(tiny_tokenizer), PAIRS, FineTuning(epochs=1), tmp_path)


def test_what_the_launcher_sets_by_default_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.setenv(variable, "no")
    check_environment(torch.float32)
    check_environment(torch.bfloat16)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_environment(torch.bfloat16)
