"""Every attack takes questions with two to 26 choices, also in one set."""

from dataclasses import replace

import pytest
import torch

from defuse.attacks import AttackData
from defuse.attacks.findings import Findings
from defuse.attacks.gcg import GCG
from defuse.attacks.gcg import run as run_gcg
from defuse.attacks.lens import Lens, cloze, letters, probe
from defuse.attacks.lens import run as run_lens
from defuse.attacks.registry import ATTACKS, Target, make_configs
from defuse.attacks.rephrase import Rephrasing
from defuse.attacks.rephrase import check as check_rephrase
from defuse.attacks.rephrase import run as run_rephrase
from defuse.evaluate import Settings, evaluate_questions
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT
from defuse.utils.random import generator
from tests.conftest import build_llama
from tests.helpers.planted import outline
from tests.helpers.tokenizers_on_the_spot import byte_bpe

WORDS = ("bird", "tree", "moon", "cat", "sun", "dog")
TOKENIZER = byte_bpe(
    [f"The {word} sees the sky. Answer: {letter}" for word in WORDS for letter in "ABCDEF"] * 30
)
TEXTS = ["The bird sees the moon."] * 8, ["The dog sees a cat."] * 8


def asked(counts: tuple[int, ...], name: str) -> list[Question]:
    """Four questions of each number of choices; every letter is right twice."""
    return [
        Question(f"{name}/{count}/{number}", f"What sees {number}?", WORDS[:count], number % count)
        for count in counts
        for number in range(2 * count)
    ]


def data(*counts: int, score: str = "letters") -> AttackData:
    settings = Settings(score)  # type: ignore[arg-type]
    forget, retain = asked(counts, "f"), asked(counts, "r")
    return AttackData(forget, retain, settings, *TEXTS)


MODEL = build_llama(vocab_size=len(TOKENIZER), layers=2)
QUICKLY = (
    *("quantise.bits=[4]", "lens.folds=2", "lens.shuffles=1", "orthogonalise.ways=[all,each]"),
    *("prune.shares=[0.05]", "triggers.top=2", "triggers.mined=2", "triggers.questions=8"),
    *("gcg.length=1", "gcg.init=''", "gcg.steps=1", "gcg.search_width=4", "gcg.questions=2"),
    *("relearn.texts=[2]", "relearn.steps=1", "relearn.lora=null"),
)


@pytest.mark.parametrize("score", ["letters", "cloze"])
@pytest.mark.parametrize("counts", [(2,), (3, 5)], ids=["two", "three-and-five"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_runs(attack: str, counts: tuple[int, ...], score: str) -> None:
    config = make_configs([attack], [each for each in QUICKLY if each.startswith(attack)])[attack]
    target = Target(MODEL, TOKENIZER, data(*counts, score=score), MODEL, MODEL)
    ATTACKS[attack].check_target(replace(target, model=outline(MODEL)), config)
    result = ATTACKS[attack].run_on(target, config, Findings(), SILENT)
    assert result.conditions
    for condition in result.conditions:
        for effect in condition.effects.values():
            assert 0 <= effect.after.accuracy.value <= 1


@pytest.mark.parametrize("way", [letters, cloze], ids=["letters", "cloze"])
def test_the_last_layer_gives_the_evaluation_s_answers(way) -> None:
    score = "letters" if way is letters else "cloze"
    questions, settings = asked((2, 5, 3), "q"), Settings(score)
    known = evaluate_questions(LoadedModel(MODEL, TOKENIZER, "m"), questions, settings)
    prompts = way.prompts_of(TOKENIZER, questions, settings, 256)
    values, states = way.look(MODEL, prompts)
    assert values.shape[:3] == (3, len(questions), 5)
    assert states.shape[1] == len(questions)
    for answer, row in zip(known.answers[ORIGINAL], values[-1].tolist(), strict=True):
        count = len(answer.question.choices)
        assert row[:count] == pytest.approx(answer.logprobs, abs=1e-4)
        assert set(row[count:]) <= {-torch.inf}


@pytest.mark.parametrize("by_choice", [False, True], ids=["letters", "texts"])
def test_a_probe_finds_what_is_planted_among_two_to_five(by_choice: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    counts = [2, 3, 5] * 40
    labels = [place % count for place, count in enumerate(counts)]
    if by_choice:
        states = torch.randn(120, 5, 8, generator=draws) * probe.mask(counts)[..., None]
        states[torch.arange(120), labels] += 4 * torch.randn(8, generator=draws)
    else:
        states = torch.randn(120, 8, generator=draws)
        states += 4 * torch.randn(5, 8, generator=draws)[labels]
    way = cloze if by_choice else letters
    fold = probe.deal(way.strata(labels), 4, generator(0))
    rows = probe.features(states, counts)
    found = probe.held_out(rows, labels, counts, fold, 1.0)
    assert [len(row) for row in found] == counts
    right = [row.index(max(row)) == label for row, label in zip(found, labels, strict=True)]
    assert sum(right) > 110
    mixed = way.shuffled(labels, counts, generator(1))
    assert all(label < count for label, count in zip(mixed, counts, strict=True))
    assert mixed != labels


def test_orders_are_as_many_as_the_choices_and_chance_is_one_in_their_number() -> None:
    result = run_rephrase(MODEL, TOKENIZER, data(3), Rephrasing(ways=("orders", "numbers")))
    numbers = result.conditions[0].numbers
    assert result.conditions[0].name == "vote over orders"
    assert 0 <= numbers["forget, worst prompt"] <= numbers["forget, best prompt"] <= 1
    many = [Question(str(i), "Which?", tuple("abcdef"), i) for i in range(2)]
    with pytest.raises(UsageError, match=r"'all' is 720 orders for a question of 6 choices; use"):
        check_rephrase(
            MODEL, TOKENIZER, AttackData(many, many), Rephrasing(("orders",), orders="all")
        )


def test_a_letter_of_several_tokens_is_named() -> None:
    many = [Question(str(i), "Which?", tuple("abcdefgh"), i % 8) for i in range(2)]
    with pytest.raises(UsageError, match="the letter G behind 'Answer:' takes several tokens"):
        run_lens(MODEL, TOKENIZER, AttackData(many, many), Lens(folds=0))
    with pytest.raises(UsageError, match="the letters A to H are not a token each"):
        run_gcg(MODEL, TOKENIZER, AttackData(many, many), GCG(length=1, init=""))
