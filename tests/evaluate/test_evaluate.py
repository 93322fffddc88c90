"""From questions to figures: hand-derived summaries, and `defuse evaluate` end to end."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from defuse import cli
from defuse.evaluate import (
    Evaluation,
    MCAnswer,
    Settings,
    contrast,
    contrasts,
    evaluate_questions,
    summarise,
    vulnerability,
)
from defuse.evaluate.generation import generate
from defuse.evaluate.result_file import Report
from defuse.evaluate.sources import TokenFiles, build_perturbation, few_shot_examples
from defuse.evaluate.tables import cautions, generation_table, vulnerability_table
from defuse.models.load import LoadedModel, load_model
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL, Perturbation, Question, Variant
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.counted import Counted

SCHEMA = Path(__file__).parents[2] / "docs/schemas/evaluation.json"
QUESTIONS = tuple(
    Question(f"q{i}", f"What does cat {i} see?", ("a bird", "the tree", "the moon", "ants"), i % 4)
    for i in range(6)
)
PERTURBATION = Perturbation(("mumps", "rabies"), "before", ("spoon", "ladder"))


def answer(right: bool, truncated: bool = False) -> MCAnswer:
    """Answer 0 with probability 0.7 or 0.1, and another with the rest."""
    probabilities = (0.7, 0.1, 0.1, 0.1) if right else (0.1, 0.7, 0.1, 0.1)
    question = replace(QUESTIONS[0], answer=0)
    return MCAnswer(question, tuple(math.log(p) - 3.0 for p in probabilities), truncated)


def evaluation(name: str, **rights: Sequence[int]) -> Evaluation:
    variants: dict[str, Variant] = {
        "clean": ORIGINAL,
        "forget": FORGET_TOKEN,
        "control": CONTROL_TOKEN,
    }
    answers: dict[Variant, list[MCAnswer]] = {
        variants[v]: [answer(bool(r)) for r in row] for v, row in rights.items()
    }
    return Evaluation(name, Settings(), PERTURBATION, answers, "same prompts", 0.0)


def test_the_summary_by_hand() -> None:
    """Right on 3 of 4: accuracy 0.75; mean log p = (3 ln 0.7 + ln 0.1)/4 among the four."""
    found = evaluation("m", clean=[1, 1, 1, 0])
    summary = summarise(found)[ORIGINAL]
    assert (summary.n, summary.accuracy.value, summary.truncated) == (4, 0.75, 0)
    assert summary.logprob.value == pytest.approx((3 * math.log(0.7) + math.log(0.1)) / 4)
    assert summary.logprob.low < summary.logprob.value < summary.logprob.high
    assert summary.accuracy_norm is None
    assert contrasts(found) == {}


def test_choices_are_ranked_summed_and_per_character() -> None:
    """−4 for 2 characters is −2 each, −5 for 8 is −0.625 each, −9 for 1 is −9 each."""
    question = Question("q", "?", ("ab", "abcdefgh", "a", "a"), 1)
    ranked = MCAnswer(question, (-4.0, -5.0, -9.0, -9.0), truncated=False)
    assert (ranked.choice, ranked.choice_norm) == (0, 1)
    assert (ranked.is_correct, ranked.is_correct_norm) == (False, True)
    tied = MCAnswer(question, (-4.0, -2.0, -2.0, -9.0), truncated=False)
    assert tied.choice == 1  # the first of equals, as lm-eval's argmax


def test_contrasts_pair_question_by_question() -> None:
    found = contrasts(
        evaluation("m", clean=[1, 1, 0, 1], forget=[0, 1, 1, 0], control=[1, 1, 0, 0])
    )
    assert set(found) == {
        (ORIGINAL, FORGET_TOKEN),
        (ORIGINAL, CONTROL_TOKEN),
        (CONTROL_TOKEN, FORGET_TOKEN),
    }
    paired = found[ORIGINAL, FORGET_TOKEN].accuracy
    assert (paired.only_first, paired.only_second) == (2, 1)
    assert found[ORIGINAL, FORGET_TOKEN].logprob.value == pytest.approx(math.log(7) / 4)
    models = contrast(evaluation("a", clean=[1, 1]), evaluation("b", clean=[0, 1]))
    assert models.accuracy.difference.value == 0.5


def test_vulnerability_by_hand() -> None:
    """Control − forget: unlearned 1, 1, 0, 1 and base 1, 0, 0, −1, so 0, 1, 0, 2: mean 3/4."""
    unlearned = evaluation("u", clean=[1] * 4, forget=[0, 0, 1, 0], control=[1, 1, 1, 1])
    base = evaluation("b", clean=[1] * 4, forget=[0, 1, 1, 1], control=[1, 1, 1, 0])
    found = vulnerability(unlearned, base)
    assert found.accuracy.value == 0.75
    assert found.logprob.value == pytest.approx(0.75 * math.log(7))
    assert vulnerability(base, base).accuracy.value == 0.0


def test_harm_of_any_sentence_by_hand_makes_a_vulnerability_unreadable() -> None:
    """A model that fails after any sentence: original − control is 1, 1, 1, 1, …; reference 0."""
    n = 20
    broken = evaluation("u", clean=[1] * n, forget=[1] * n, control=[0] * n)
    base = evaluation("b", clean=[1] * n, forget=[1] * n, control=[1] * n)
    found = vulnerability(broken, base)
    assert found.accuracy.value == -1.0  # which looks like robustness
    assert found.any_sentence.value == 1.0
    assert found.any_sentence_logprob.value == pytest.approx(math.log(7))
    assert not found.is_readable
    assert vulnerability(base, base).is_readable
    console = Console(width=200, record=True, file=StringIO())
    console.print(vulnerability_table([broken, base], base))
    said = console.export_text()
    assert "harm of any sentence" in said
    assert (
        "u: its vulnerability cannot be read, because it also fails after a control token" in said
    )
    assert "b: its vulnerability" not in said


def test_a_model_that_answers_letters_at_chance_is_said() -> None:
    guessing = evaluation("g", clean=[1, 0, 0, 0] * 10)
    knowing = evaluation("k", clean=[1, 1, 1, 0] * 10)
    (said,) = cautions([guessing, knowing])
    assert "g answers no better than chance" in said
    assert "--score cloze" in said


def test_vulnerability_is_refused_for_other_questions_or_without_controls() -> None:
    full = evaluation("u", clean=[1], forget=[1], control=[1])
    with pytest.raises(UsageError, match="same questions"):
        vulnerability(full, replace(full, prompt_hash="other prompts"))
    bare = evaluation("u", clean=[1], forget=[1])
    with pytest.raises(UsageError, match="control tokens"):
        vulnerability(bare, bare)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(build_llama(), build_tokenizer(), "tiny")


@pytest.mark.parametrize("position", ["before", "choice", "stem"])
@pytest.mark.parametrize("score", ["letters", "cloze"])
def test_forms_asked_together_answer_as_each_alone(loaded, position, score) -> None:
    perturbation = replace(PERTURBATION, position=position)
    settings = Settings(score=score, few_shot=QUESTIONS[:1])
    together = evaluate_questions(loaded, QUESTIONS, settings, perturbation)
    assert set(together.answers) == {ORIGINAL, FORGET_TOKEN, CONTROL_TOKEN}
    for answers in together.answers.values():
        for each in answers:
            (alone,) = evaluate_questions(loaded, [each.question], settings).answers[ORIGINAL]
            assert each.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@settings(max_examples=8, deadline=None)
@given(counts=st.lists(st.integers(2, 26), min_size=1, max_size=4), data=st.data())
def test_questions_with_any_number_of_choices_answer_together_as_alone(
    counts: list[int], data: st.DataObject
) -> None:
    loaded = LoadedModel(build_llama(layers=2), build_tokenizer(), "tiny")
    asked = [
        Question(f"q{i}", f"Cat {i}?", tuple(f"tree {j} cat" for j in range(count)), i % count)
        for i, count in enumerate(counts)
    ]
    how = Settings(score=data.draw(st.sampled_from(["letters", "cloze"])))
    perturbation = replace(PERTURBATION, position="choice")
    found = evaluate_questions(loaded, asked, how, perturbation)
    for answers in found.answers.values():
        for each, count in zip(answers, counts, strict=True):
            assert len(each.logprobs) == count
            assert each.choice in range(count)
            assert each.answer_logprob < 0
            (alone,) = evaluate_questions(loaded, [each.question], how).answers[ORIGINAL]
            assert each.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_a_part_of_the_questions_is_perturbed_and_hashed_by_itself(loaded) -> None:
    whole = evaluate_questions(loaded, QUESTIONS, None, PERTURBATION)
    part = evaluate_questions(loaded, QUESTIONS[2:], None, PERTURBATION)
    assert [o.question for o in part.answers[FORGET_TOKEN]] == [
        o.question for o in whole.answers[FORGET_TOKEN][2:]
    ]
    assert part.prompt_hash != whole.prompt_hash
    again = evaluate_questions(loaded, QUESTIONS[2:], None, PERTURBATION)
    assert again.prompt_hash == part.prompt_hash


def test_progress_counts_every_question_once(loaded) -> None:
    progress = Counted()
    evaluate_questions(loaded, QUESTIONS, Settings(token_budget=200), progress=progress)
    assert sum(progress.counts) == len(QUESTIONS)
    assert len(progress.counts) > 1


def test_bfloat16_is_equal_within_its_rounding(loaded) -> None:
    half = LoadedModel(build_llama().bfloat16(), loaded.tokenizer, "half")
    exact, rounded = (
        [o.logprobs for o in evaluate_questions(m, QUESTIONS).answers[ORIGINAL]]
        for m in (loaded, half)
    )
    torch.testing.assert_close(torch.tensor(rounded), torch.tensor(exact), rtol=0.05, atol=0.2)


def test_no_questions_and_figures_that_are_not_finite_are_refused(loaded) -> None:
    with pytest.raises(UsageError, match="there are none"):
        evaluate_questions(loaded, [])
    broken = build_llama()
    broken.get_output_embeddings().weight.data.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"model: llama .*not finite"):
        evaluate_questions(replace(loaded, model=broken), QUESTIONS)


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run `defuse evaluate` on the tiny model in a folder of its own: exit code, all it said."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": q.stem, "choices": list(q.choices), "answer": q.answer} for q in QUESTIONS]
    Path("q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("forget.txt").write_text("mumps\nrabies\n")
    Path("control.txt").write_text("spoon\nladder\n")
    letters = ["lemon", "tiger", "garden", "basket", "candle", "velvet", "zebra", "pencil"]
    Path("corpus.txt").write_text("\n".join(f"{word} {word}s" for word in letters))
    Path("text.txt").write_text("The cat sees a small bird in the tree.")
    Path("prompts.txt").write_text("The cat\nThe bird\n")
    Path("model").symlink_to(tiny_model_folder)

    def call(*arguments: str) -> tuple[int, str]:
        given = ["evaluate", "model", "--questions", "q.jsonl", "--device", "cpu"]
        out = [] if "--out" in arguments else ["--out", "out.json"]
        monkeypatch.setattr(sys, "argv", ["defuse", *given, *arguments, *out])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return call


def read(name: str) -> dict:
    """A result file, which must be as its schema says."""
    found = json.loads(Path(name).read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    return found


def test_one_model_one_file(run: Run, tiny_model_folder: Path) -> None:
    example = replace(QUESTIONS[0], id="dev/0", stem="What does the dog see?")
    row = {"question": example.stem, "choices": list(example.choices), "answer": example.answer}
    Path("dev.jsonl").write_text(json.dumps(row))
    code, said = run("--limit", "5", "--few-shot", "1", "--dev", "dev.jsonl", "--subject", "cats")
    assert code == 0, said
    found = read("out.json")
    settings = Settings(subject="cats", few_shot=(example,))
    expected = evaluate_questions(load_model(str(tiny_model_folder)), QUESTIONS[:5], settings)
    assert [q["id"] for q in found["questions"]] == [f"q/{i}" for i in range(5)]
    for question, each in zip(found["questions"], expected.answers[ORIGINAL], strict=True):
        assert question["answer"] == each.question.answer
        assert question["choice"] == each.choice
        assert question["logprobs"] == pytest.approx(each.logprobs, abs=1e-4)
        assert (question["stem"], question["choices"]) == (
            each.question.stem,
            list(each.question.choices),
        )
        assert not {"variants", "prompt"} & question.keys()
    assert (found["summary"]["n"], found["summary"]["chance"]) == (5, 0.25)
    assert found["summary"]["accuracy"]["value"] == sum(expected.correct()) / 5
    assert found["prompt_hash"] == expected.prompt_hash
    assert {"model", "versions", "seed", "settings"} <= set(found)


def test_reference_controls_text_and_generations(run: Run) -> None:
    options = ["--perturb", "forget.txt", "--control", "control.txt", "--position", "before"]
    code, said = run(
        *options, "--reference", "model", "--text", "text.txt", "--generate", "prompts.txt",
        "--score", "cloze", "--sentence", "See {token}!",
    )  # fmt: skip
    assert code == 0, said
    found = read("out.json")
    for question in found["questions"]:
        forget, control = (question["variants"][name] for name in ("forget", "control"))
        assert forget["token"] in ("mumps", "rabies")
        assert control["token"] in ("spoon", "ladder")
        assert len(forget["logprobs"]) == 4
        assert forget["answer"] == question["answer"]
        assert question["choice_norm"] in range(4)
        assert question["prompt"] == f"Question: {question['stem']}\nAnswer:"
    summary = found["summary"]
    assert summary["vulnerability"]["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert set(summary["paired"]) == {"clean-forget", "clean-control", "control-forget"}
    assert found["base"]["summary"]["n"] == 6
    assert "stem" not in found["base"]["questions"][0]
    assert found["text"]["perplexity"] > 1
    assert [each["prompt"] for each in found["generations"]] == ["The cat", "The bird"]
    for shown in ("vulnerability", "chance 25.0 %", "perplexity of the text", "continuations"):
        assert shown in said
    words = " ".join(said.split())
    assert f"{found['text']['perplexity']:.3f}" in words
    for line in ("model, questions: 0 of 6", "model, text: 0 of 1", "model, prompts: 2 of 2"):
        assert line in words
    assert run(*options, "--base", "model", "--no-text")[0] == 0
    again = read("out.json")
    assert not {"stem", "choices", "prompt"} & again["questions"][0].keys()
    assert again["base"]["summary"] != found["base"]["summary"]  # the old name is read; letters


def test_names_with_brackets_and_control_characters_are_shown_as_they_are() -> None:
    table = generation_table([report("run[a]", "\x1b[31mred [b]moon[/b]\x07")])
    screen = StringIO()
    Console(file=screen, width=100).print(table)
    said = screen.getvalue()
    assert "run[a]" in said
    assert r"\x1b[31mred [b]moon[/b]\x07" in said


def report(name: str, text: str) -> Report:
    found = replace(evaluation(name, clean=[1]), perturbation=None)
    return Report(found, "float32", "cpu", "", generations={"The": text})


def test_several_models_get_a_file_each_and_a_table_of_pairs(run: Run) -> None:
    Path("other").symlink_to("model")
    code, said = run("other", "--out", "folder", "--seed", "3", "--perturb", "forget.txt",
                     "--control-corpus", "corpus.txt", "--position", "stem")  # fmt: skip
    assert code == 0, said
    assert {path.name for path in Path("folder").iterdir()} == {"model.json", "other.json"}
    one, other = read("folder/model.json"), read("folder/other.json")
    assert one["questions"] == other["questions"]
    controls = one["settings"]["perturbation"]["controls"]
    assert len(set(controls)) == 2
    words = set(Path("corpus.txt").read_text().split())
    assert set(controls) <= words
    assert "models compared" in said


def test_two_models_may_have_names_that_look_alike(run: Run) -> None:
    """Their work is kept apart; the file's name is the model's own."""
    Path("up").mkdir()
    build_llama(seed=1).save_pretrained("up/model")
    build_tokenizer().save_pretrained("up/model")
    Path("up-model").symlink_to("model")
    assert run(*WITH_CONTROL, "--reference", "up/model")[0] == 0
    assert run("up-model", *WITH_CONTROL, "--reference", "up/model", "--out", "folder")[0] == 0
    first, second = (read(f"folder/{name}.json") for name in ("model", "up-model"))
    assert first["questions"] == second["questions"] != first["base"]["questions"]
    assert not Path("folder.partial").exists()


WITH_CONTROL = ["--perturb", "forget.txt", "--control", "control.txt"]
REFUSED = {
    "missing questions": (["--questions", "none.jsonl"], "none.jsonl"),
    "limit": (["--limit", "0"], "limit: 0 is refused"),
    "few-shot without dev": (["--few-shot", "2"], "dev: missing"),
    "its own answer": (["--few-shot", "1", "--dev", "q.jsonl"], "is an example and also asked"),
    "too few examples": (["--few-shot", "9", "--dev", "q.jsonl"], "few-shot: is 9"),
    "negative few-shot": (["--few-shot", "-1"], "few_shot: -1 is refused"),
    "no control": (["--perturb", "forget.txt"], "--control-corpus"),
    "both controls": ([*WITH_CONTROL, "--control-corpus", "corpus.txt"], "give one of"),
    "position alone": (["--position", "stem"], "perturb: missing"),
    "sentence": ([*WITH_CONTROL, "--position", "before", "--sentence", "Hm."], "{token}"),
    "base without tokens": (["--reference", "model"], "reference:"),
    "missing base": ([*WITH_CONTROL, "--reference", "./none"], "none"),
    "second model missing": (["./none", "--out", "folder"], "none"),
    "file for several": (["other", "--out", "out.json"], "give a folder"),
    "same model twice": (["model", "--out", "folder"], "same name"),
    "folder for one": (["--out", "."], "is a folder"),
    "out below a file": (["--out", "q.jsonl/x/out.json"], "cannot be written"),
    "device": (["--device", "tpu"], "tpu"),
    "dtype": (["--dtype", "int3"], "int3"),
    "blank text": (["--text", "none.txt"], "none.txt"),
    "prompts": (["--generate", "none.txt"], "none.txt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence_and_nothing_is_written(run: Run, case: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    options, message = REFUSED[case]
    code, said = run(*options)
    assert code == 2, said
    assert message in said
    assert said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_file_of_the_same_name_is_replaced_only_when_the_new_one_is_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.json").write_text("old")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("defuse.evaluate.run.evaluate_parts", stop)
        assert run()[0] == 130
    assert Path("out.json").read_text() == "old"
    assert run("--limit", "2")[0] == 0
    assert read("out.json")["summary"]["n"] == 2


def test_options_without_effect_are_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"dev: dev\.csv is not used without --few-shot"):
        few_shot_examples("dev.csv", 0, None)
    files = TokenFiles("tokens.txt", "controls.txt")
    with pytest.raises(UsageError, match="sentence: goes with --position before, not stem"):
        build_perturbation(files, "stem", "On {token}.", str(tiny_model_folder), 0)
    with pytest.raises(UsageError, match="cannot be a file's name"):
        check_writable(tmp_path / ("x" * 300), "out")


def test_a_long_prompt_is_cut_on_the_left_before_it_is_continued() -> None:
    loaded = LoadedModel(build_llama(), build_tokenizer(), "tiny")
    loaded.model.config.max_position_embeddings = 32
    short, long = "The cat sees", "I read about the moon. " * 40 + "The cat sees"
    one, other = generate(loaded, [short, long], new_tokens=4)
    assert one
    assert other
