"""Prompts, log-probabilities and predictions equal lm-evaluation-harness 0.4.13's own."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from benchmarks import lm_eval_reference as reference
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from defuse.evaluate import Evaluation, Settings, evaluate_questions
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question, ask, few_shot_part, load_questions
from tests.helpers.tokenizers_on_the_spot import KINDS

MMLU = Path("../shared/data/mmlu")
SUBJECTS = (
    "college_biology",
    "college_computer_science",
    "computer_security",
    "high_school_geography",
)
needs_mmlu = pytest.mark.skipif(not MMLU.is_dir(), reason=f"needs MMLU's csv files in {MMLU}")
TOLERANCE = 1e-4


def questions_of(subject: str, limit: int | None = None) -> tuple[Question, ...]:
    return load_questions(str(MMLU / f"test/{subject}_test.csv"), limit=limit)


def examples_of(subject: str) -> tuple[Question, ...]:
    return load_questions(str(MMLU / f"dev/{subject}_dev.csv"))


@cache
def loaded(kind: str, max_length: int = 4096) -> LoadedModel:
    texts = [f"{ask(q, 'letters')} A" for subject in SUBJECTS for q in questions_of(subject)]
    tokenizer = KINDS[kind](texts)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.2,
    )
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    return LoadedModel(model, tokenizer, kind)


def assert_parity(
    model: LoadedModel, questions: Sequence[Question], settings: Settings
) -> Evaluation:
    expected = reference.ask(model.model, model.tokenizer, questions, settings)
    evaluation = evaluate_questions(model, questions, settings)
    answers = evaluation.answers[ORIGINAL]
    before = few_shot_part(settings.subject, settings.few_shot, settings.score)
    assert [before + ask(q, settings.score) for q in questions] == expected.prompts
    ours = torch.tensor([answer.logprobs for answer in answers], dtype=torch.float64)
    theirs = torch.tensor(expected.logprobs, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    assert [answer.choice for answer in answers] == expected.choices
    if settings.score == "cloze":
        assert [answer.choice_norm for answer in answers] == expected.choices_norm
    return evaluation


@needs_mmlu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shots", [0, 5])
def test_letters_equal_lm_eval(kind: str, shots: int) -> None:
    subject = "college_biology"
    settings = Settings(subject=subject, few_shot=examples_of(subject)[:shots])
    assert_parity(loaded(kind), questions_of(subject, limit=12), settings)


@needs_mmlu
@pytest.mark.parametrize("kind", KINDS)
def test_cloze_equals_lm_eval_summed_and_per_character(kind: str) -> None:
    settings = Settings(score="cloze", few_shot=examples_of("computer_security")[:2])
    assert_parity(loaded(kind), questions_of("computer_security", limit=12), settings)


@needs_mmlu
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_too_long_for_the_model_are_cut_as_lm_eval_cuts_them(kind: str) -> None:
    subject = "high_school_geography"
    questions = questions_of(subject, limit=12)
    lengths = [len(loaded(kind).tokenizer.encode(ask(q, "letters"))) for q in questions]
    short = sorted(lengths)[6]  # so that about half of them are cut
    settings = Settings(subject=None)
    evaluation = assert_parity(loaded(kind, short), questions, settings)
    cut = sum(answer.truncated for answer in evaluation.answers[ORIGINAL])
    assert 0 < cut < len(questions)
    with_examples = replace(settings, few_shot=examples_of(subject))
    assert_parity(loaded(kind, short), questions, with_examples)


@needs_mmlu
def test_a_choice_cut_on_the_left_by_its_own_length_equals_lm_eval() -> None:
    questions = questions_of("college_computer_science", limit=8)
    assert_parity(loaded("bytes-only", 150), questions, Settings(score="cloze"))


@needs_mmlu
@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("kind", ["byte-bpe", "unigram"])
def test_every_question_of_four_subjects_equals_lm_eval(
    kind: str, shots: int, subject: str
) -> None:
    settings = Settings(subject=subject, few_shot=examples_of(subject)[:shots])
    assert_parity(loaded(kind), questions_of(subject), settings)
